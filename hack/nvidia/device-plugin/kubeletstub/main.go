// Command kubeletstub is a STAND-IN for the kubelet's side of the device plugin protocol: it takes registrations
// on <folder>/kubelet.sock, follows what each plugin streams, and prints one JSON line per list of devices:
//
//	{"resource":"nvidia.com/gpu","healthy":["GPU-…"],"unhealthy":[]}
//
// A plugin that ends is printed as gone. It checks nothing and allocates nothing.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sort"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

type line struct {
	Resource  string   `json:"resource"`
	Healthy   []string `json:"healthy"`
	Unhealthy []string `json:"unhealthy"`
	Gone      bool     `json:"gone,omitempty"`
}

type registry struct {
	api.UnimplementedRegistrationServer
	folder string
	output sync.Mutex
}

func (r *registry) print(l line) {
	r.output.Lock()
	defer r.output.Unlock()
	if err := json.NewEncoder(os.Stdout).Encode(l); err != nil {
		fmt.Fprintln(os.Stderr, "kubeletstub:", err)
	}
}

// Register answers at once, as the kubelet does, and follows the plugin in the background.
func (r *registry) Register(_ context.Context, request *api.RegisterRequest) (*api.Empty, error) {
	go func() {
		if err := r.follow(request); err != nil {
			fmt.Fprintf(os.Stderr, "kubeletstub: %s: %v\n", request.ResourceName, err)
		}
		r.print(line{Resource: request.ResourceName, Healthy: []string{}, Unhealthy: []string{}, Gone: true})
	}()
	return &api.Empty{}, nil
}

func (r *registry) follow(request *api.RegisterRequest) error {
	target := "unix://" + filepath.Join(r.folder, request.Endpoint)
	connection, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	stream, err := api.NewDevicePluginClient(connection).ListAndWatch(context.Background(), &api.Empty{})
	if err != nil {
		return err
	}
	for {
		list, err := stream.Recv()
		if err != nil {
			return err
		}
		r.print(describe(request.ResourceName, list.Devices))
	}
}

func describe(resource string, devices []*api.Device) line {
	l := line{Resource: resource, Healthy: []string{}, Unhealthy: []string{}}
	for _, device := range devices {
		if device.Health == api.Healthy {
			l.Healthy = append(l.Healthy, device.ID)
		} else {
			l.Unhealthy = append(l.Unhealthy, device.ID)
		}
	}
	sort.Strings(l.Healthy)
	sort.Strings(l.Unhealthy)
	return l
}

func run(folder string) error {
	socket := filepath.Join(folder, "kubelet.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	api.RegisterRegistrationServer(server, &registry{folder: folder})
	fmt.Fprintln(os.Stderr, "kubeletstub: ready at", socket)
	return server.Serve(listener)
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: kubeletstub <device plugin folder>")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "kubeletstub:", err)
		os.Exit(1)
	}
}
