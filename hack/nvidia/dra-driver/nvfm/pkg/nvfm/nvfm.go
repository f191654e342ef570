// Package nvfm stands in for NVIDIA's go-nvfm, which cannot be had: every call fails. The DRA driver uses it only for
// GPUs that are passed through to virtual machines.
package nvfm

import "math"

type (
	Return              int
	FabricPartitionId   uint32
	LibraryOption       struct{}
	ConnectOption       struct{}
	FabricPartitionList struct {
		NumPartitions uint32
		PartitionInfo [1]FabricPartitionInfo
	}
	FabricPartitionInfo struct {
		PartitionId, IsActive, NumGpus uint32
		GpuInfo                        [1]FabricPartitionGpu
	}
	FabricPartitionGpu struct {
		PhysicalId                                             uint32
		Uuid, PciBusId                                         [1]int8
		NumNvLinksAvailable, MaxNumNvLinks, NvlinkLineRateMBps uint32
	}
	Interface interface {
		Init() Return
		Shutdown() Return
		Connect(...ConnectOption) (Handle, Return)
	}
	Handle interface {
		Disconnect() Return
		GetSupportedFabricPartitions() (FabricPartitionList, Return)
		ActivateFabricPartition(FabricPartitionId) Return
		DeactivateFabricPartition(FabricPartitionId) Return
	}
	absent struct{}
)

const (
	SUCCESS Return = 0
	missing Return = math.MaxInt16
)

func (Return) String() string                            { return "go-nvfm is a stub" }
func (absent) Init() Return                              { return missing }
func (absent) Shutdown() Return                          { return missing }
func (absent) Connect(...ConnectOption) (Handle, Return) { return nil, missing }
func New(...LibraryOption) Interface                     { return absent{} }
func WithLibraryPath(string) LibraryOption               { return LibraryOption{} }
func WithUnixSocket(string) ConnectOption                { return ConnectOption{} }
func WithAddress(string) ConnectOption                   { return ConnectOption{} }
func WithTimeoutMs[T any](T) ConnectOption               { return ConnectOption{} }
