// Command kubelet is the Kubernetes kubelet, built from the same pinned module as the control plane.
// It is a module of its own: the control plane is needed on every machine, this only where rung 4 runs.
package main

import (
	"context"
	"os"

	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	"k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	os.Exit(cli.Run(app.NewKubeletCommand(context.Background())))
}
