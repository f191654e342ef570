// Command kubeletstub is a STAND-IN for the kubelet's side of the device plugin protocol: it takes registrations
// on <folder>/kubelet.sock, follows what each plugin streams, and prints one JSON line per list of devices:
//
//	{"resource":"nvidia.com/gpu","healthy":["GPU-…"],"unhealthy":[]}
//
// A plugin that ends is printed as gone, unless it has registered again meanwhile. It checks nothing and allocates
// nothing. With two more arguments, a socket and a file, it also serves the kubelet's podresources List there: the
// pods of the file, a JSON list of {"namespace", "name", "resource", "ids"}.
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
	latest map[string]int // registrations per resource
}

func (r *registry) print(l line, registration int) {
	r.output.Lock()
	defer r.output.Unlock()
	if r.latest[l.Resource] != registration {
		return
	}
	if err := json.NewEncoder(os.Stdout).Encode(l); err != nil {
		fmt.Fprintln(os.Stderr, "kubeletstub:", err)
	}
}

// Register answers at once, as the kubelet does, and follows the plugin in the background.
func (r *registry) Register(_ context.Context, request *api.RegisterRequest) (*api.Empty, error) {
	r.output.Lock()
	r.latest[request.ResourceName]++
	registration := r.latest[request.ResourceName]
	r.output.Unlock()
	go func() {
		if err := r.follow(request, registration); err != nil {
			fmt.Fprintf(os.Stderr, "kubeletstub: %s: %v\n", request.ResourceName, err)
		}
		gone := line{Resource: request.ResourceName, Healthy: []string{}, Unhealthy: []string{}, Gone: true}
		r.print(gone, registration)
	}()
	return &api.Empty{}, nil
}

func (r *registry) follow(request *api.RegisterRequest, registration int) error {
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
		r.print(describe(request.ResourceName, list.Devices), registration)
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
	api.RegisterRegistrationServer(server, &registry{folder: folder, latest: map[string]int{}})
	fmt.Fprintln(os.Stderr, "kubeletstub: ready at", socket)
	return server.Serve(listener)
}

func main() {
	if len(os.Args) != 2 && len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: kubeletstub <device plugin folder> [<podresources socket> <file>]")
		os.Exit(2)
	}
	if len(os.Args) == 4 {
		go func() {
			fmt.Fprintln(os.Stderr, "kubeletstub:", servePodResources(os.Args[2], os.Args[3]))
			os.Exit(1)
		}()
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "kubeletstub:", err)
		os.Exit(1)
	}
}
