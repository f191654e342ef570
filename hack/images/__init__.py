"""The image of operator and agent: `make images`, `python -m hack.images [--arch amd64]`.

For other tools:

    from hack.images import local
    image = local.build()   # for this machine's architecture; 20 s once packages and wheels are in the cache
    image.archive           # build/images/gpu-sharing-operator-0.1.0-amd64.tar: OCI layout and docker-archive
    image.reference         # localhost/gpu-sharing-operator:0.1.0, its name after `ctr -n k8s.io images import`
    image.digest            # sha256:... of the manifest
    image.tree              # folders that form the root file system when copied over each other

No root, no container program and no registry is needed. `build` raises `hack.images.debian.FetchError` or
`hack.images.wheels.WheelError` if something cannot be downloaded; their messages say what to do. Downloads are kept in
the user's cache.
"""
