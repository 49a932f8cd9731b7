# Sourced by build.sh: the file system of a node of kind, from Debian's packages, kind's own files (in its Go module) and
# Kubernetes' programs, with the images of a control plane in its store.

# make_node_root INTO: $programs, $dns, $node, $images and $tools are what build.sh has found or built.
make_node_root() {
    local root=$1/rootfs files name program
    files=$(cd "$here/kind" && go list -m -f '{{.Dir}}' sigs.k8s.io/kind)/images/base/files
    say "a Debian for the nodes of kind"
    DEBOOTSTRAP_DIR=$1/debootstrap/usr/share/debootstrap "$1/debootstrap/usr/sbin/debootstrap" --variant=minbase \
        "--include=$(printf '%s\n' "${kind_packages[@]}" | paste -sd,)" "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$root" \
        </dev/null >"$1/debootstrap.log" || fail "debootstrap failed, see $1/debootstrap.log"
    say "kind's files and Kubernetes' programs"
    cp --recursive --no-preserve=mode "$files/etc/." "$root/etc/"
    cp --recursive --no-preserve=mode "$files/kind" "$root/"
    cp --no-preserve=mode "$files"/usr/local/bin/* "$root/usr/local/bin/"
    chmod 755 "$root"/usr/local/bin/* "$root/kind" "$root/kind/bin" "$root"/kind/bin/*
    rm -f "$root"/lib/systemd/system/{multi-user,local-fs,basic}.target.wants/* "$root"/etc/systemd/system/*.wants/* \
        "$root"/lib/systemd/system/sockets.target.wants/*{udev,initctl}* "$root/lib/systemd/system/containerd.service"
    find "$root/lib/systemd/system/sysinit.target.wants/" -name systemd-tmpfiles-setup.service -delete
    echo ReadKMsg=no >>"$root/etc/systemd/journald.conf"
    ln -sf /usr/lib/systemd/systemd "$root/sbin/init"
    for name in kubelet containerd undo-mount-hacks; do chroot "$root" systemctl enable "$name.service" 2>/dev/null; done
    chroot "$root" systemctl mask systemd-binfmt.service 2>/dev/null
    mkdir -p "$root"/etc/kubernetes/manifests "$root"/opt/cni/bin "$root"/kind/manifests
    cp "$root"/usr/lib/cni/* "$root/opt/cni/bin/"
    for name in containerd ctr; do ln -sf "/usr/bin/$name" "$root/usr/local/bin/$name"; done
    for program in "$tools/kubectl" "$programs/kubeadm" "$programs/kubelet"; do install "$program" "$root/usr/bin/"; done
    printf %s "$kubernetes" >"$root/kind/version"
    chroot "$root" sh -c "ctr oci spec | jq 'del(.process.rlimits)'" >"$root/etc/containerd/cri-base.json"
    sed -i "s/restrict_oom_score_adj = false/restrict_oom_score_adj = true/; s#sandbox_image = .*#sandbox_image = \"$(control_image pause)\"#" \
        "$root/etc/containerd/config.toml"
    preload "$1" "$root"
}

# The full name of an image that kubeadm asks for.
control_image() { "$programs/kubeadm" config images list --kubernetes-version "$kubernetes" 2>/dev/null | grep "/$1:"; }

# Archives of the images that kubeadm asks for go into the node's store, with those of the tests.
preload() {
    local into=$1 root=$2 name
    mkdir -p "$into/archives"
    for name in kube-apiserver kube-controller-manager etcd; do image_of "$into" "$name" "$tools/$name"; done
    image_of "$into" kube-scheduler "$programs/kube-scheduler"
    mkdir -p "$into/kube-proxy"
    tar -xOf "$images/iptables.tar" layer.tar | tar -x -C "$into/kube-proxy"
    image_of "$into" kube-proxy "$tools/kube-proxy"
    mkdir -p "$into/coredns"
    install "$dns/coredns" "$into/coredns/coredns"
    archive "$into/coredns" "$into/archives/coredns.tar" '"Entrypoint":["/coredns"]' "$(control_image coredns)"
    say "unpacking images into the node's store"
    unshare --net --mount --pid --fork --kill-child --mount-proc --propagation private \
        "$here/store.sh" "$node" "$root/var/lib/containerd" "$into"/archives/*.tar "$images"/{agnhost,pause,busybox,regression,iptables}.tar
    rm -rf "$into/archives" "$into/coredns" "$root/var/lib/images.txt"
}

image_of() {
    mkdir -p "$1/$2/usr/local/bin" "$1/$2/tmp"
    install "$3" "$1/$2/usr/local/bin/"
    archive "$1/$2" "$1/archives/$2.tar" '"Cmd":null' "$(control_image "$2")"
    rm -rf "${1:?}/$2"
}
