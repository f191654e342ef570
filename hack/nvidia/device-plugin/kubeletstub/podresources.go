package main

import (
	"context"
	"encoding/json"
	"net"
	"os"

	"google.golang.org/grpc"
	pods "k8s.io/kubelet/pkg/apis/podresources/v1"
)

type holding struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Resource  string   `json:"resource"`
	IDs       []string `json:"ids"`
}

type lister struct {
	pods.UnimplementedPodResourcesListerServer
	file string
}

// List answers what the file says now.
func (l *lister) List(context.Context, *pods.ListPodResourcesRequest) (*pods.ListPodResourcesResponse, error) {
	text, err := os.ReadFile(l.file)
	if err != nil {
		return nil, err
	}
	var held []holding
	if err := json.Unmarshal(text, &held); err != nil {
		return nil, err
	}
	answer := &pods.ListPodResourcesResponse{}
	for _, h := range held {
		device := &pods.ContainerDevices{ResourceName: h.Resource, DeviceIds: h.IDs}
		container := &pods.ContainerResources{Name: "main", Devices: []*pods.ContainerDevices{device}}
		answer.PodResources = append(answer.PodResources, &pods.PodResources{
			Name: h.Name, Namespace: h.Namespace, Containers: []*pods.ContainerResources{container},
		})
	}
	return answer, nil
}

func servePodResources(socket, file string) error {
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	pods.RegisterPodResourcesListerServer(server, &lister{file: file})
	return server.Serve(listener)
}
