#!/usr/bin/env bash
# Builds what a cluster of real kubelets needs beside the programs of e2e/tools: Kubernetes' node programs and its
# end-to-end tests, CoreDNS, containerd with runc and CNI plugins from Debian's packages (unpacked, not installed: none of
# their services starts), and images. No container registry is asked for anything. All of it goes outside the clone,
# once per set of versions; an interrupted build goes on where it stopped, and with everything in place it ends at once.
#
#   build.sh               do it
#   build.sh --kind        and what kind needs: kind itself, Docker, a node's file system
#   build.sh --print-dirs  only print where things are, or will be: `name folder` a line
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
label=cluster
. "$here/../tools/go-programs.sh"

kubernetes=$(kubernetes_version "$here/kubernetes/go.mod")
flags=$(kubernetes_flags "$kubernetes")
kubernetes_programs=(
    "kubelet|k8s.io/kubernetes/cmd/kubelet|$flags"
    "kube-scheduler|k8s.io/kubernetes/cmd/kube-scheduler|$flags"
    "kubeadm|k8s.io/kubernetes/cmd/kubeadm|$flags"
    "agnhost|k8s.io/kubernetes/test/images/agnhost|$flags"
    "regression-issue-74839|k8s.io/kubernetes/test/images/regression-issue-74839|-s -w"
    "ginkgo|github.com/onsi/ginkgo/v2/ginkgo|-s -w"
    "e2e.test|k8s.io/kubernetes/test/e2e|$flags|test"
)
programs=$cache/cluster-kubernetes-$kubernetes-$(go_key "$here/kubernetes" "${kubernetes_programs[@]}")

coredns=$(sed -n 's|^require github.com/coredns/coredns ||p' "$here/coredns/go.mod")
coredns_programs=("coredns|.|-s -w")
dns=$cache/cluster-coredns-$coredns-$(go_key "$here/coredns" "${coredns_programs[@]}" "$(sha256sum <"$here/coredns/main.go")")

# Debian's packages for the nodes, and for the images.
node_packages=(containerd runc containernetworking-plugins libseccomp2)
agnhost_packages=(wget busybox bash curl netcat-openbsd bind9-dnsutils iproute2 iperf util-linux coreutils libc-bin)
iptables_packages=(iptables conntrack kmod ipset bash coreutils grep)
node=$cache/cluster-node-$(printf '%s\n' "${node_packages[@]}" | sha256sum | cut -c1-12)
images=$cache/cluster-images-$({
    printf '%s\n' "$programs" "$dns" "${agnhost_packages[@]}" "${iptables_packages[@]}"
    cat "$here/images.sh"
} | sha256sum | cut -c1-12)

# kind, and what it is made of. The tools are those of e2e/tools.
kind_version=$(sed -n 's|.*sigs.k8s.io/kind \(v[0-9.]*\).*|\1|p' "$here/kind/go.mod" | head -n 1)
kind_programs=("kind|sigs.k8s.io/kind|-s -w")
kind_program=$cache/cluster-kind-$kind_version-$(go_key "$here/kind" "${kind_programs[@]}")
docker_packages=(docker.io libdevmapper1.02.1 tini)
kind_packages=(systemd conntrack iptables nftables iproute2 ethtool util-linux mount kmod libseccomp2 pigz ca-certificates
    curl jq procps containerd runc containernetworking-plugins bash hostname)
tools=$("$here/../tools/build.sh" --print-dir)
kind=$cache/cluster-kind-node-$({
    printf '%s\n' "$kind_program" "$images" "$tools" "${docker_packages[@]}" "${kind_packages[@]}"
    cat "$here/kind/node-image.sh"
} | sha256sum | cut -c1-12)

if [ "${1:-}" = --print-dirs ]; then
    printf '%s\n' "programs $programs" "coredns $dns" "node $node" "images $images" "kind-program $kind_program" "kind $kind"
    exit 0
fi

# download FOLDER PACKAGE...: packages and all they depend on, whatever is installed here.
download() {
    local into=$1
    shift
    command -v apt-get >/dev/null || fail "apt-get is not on the PATH: nodes and images are made of Debian's packages"
    mkdir -p "$into/partial"
    : >"$into/.status"
    local options=(-qq -y --download-only --no-install-recommends -o "Dir::State::status=$into/.status"
        -o "Dir::Cache::archives=$into" -o Debug::NoLocking=1)
    apt-get "${options[@]}" install "$@" </dev/null >/dev/null 2>&1 || {
        apt-get update -qq </dev/null
        apt-get "${options[@]}" install "$@" </dev/null >/dev/null
    }
}

# unpack FOLDER INTO [PACKAGE...]: the files of packages, without running their scripts.
unpack() {
    local from=$1 into=$2 package deb
    shift 2
    mkdir -p "$into"
    for deb in "$from"/*.deb; do
        package=$(basename "$deb")
        package=${package%%_*}
        [ $# -gt 0 ] && [[ " $* " != *" $package "* ]] && continue
        dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$into" --keep-directory-symlink
    done
}

build_node() {
    [ -d "$node" ] && return
    lock_cache
    say "containerd, runc and CNI plugins from Debian's packages"
    rm -rf "$node.partial"
    download "$node.partial/debs" "${node_packages[@]}"
    unpack "$node.partial/debs" "$node.partial" "${node_packages[@]}"
    rm -rf "$node.partial/debs"
    mv "$node.partial" "$node"
}

build_images() {
    [ -d "$images" ] && return
    lock_cache
    rm -rf "$images.partial"
    mkdir -p "$images.partial"
    . "$here/images.sh"
    make_images "$images.partial"
    mv "$images.partial" "$images"
}

build_kind() {
    build_go_programs "$here/kind" "$kind_program" "${kind_programs[@]}"
    [ -d "$kind" ] && return
    lock_cache
    rm -rf "$kind.partial"
    mkdir -p "$kind.partial"
    say "Docker from Debian's packages"
    download "$kind.partial/debs" "${docker_packages[@]}" debootstrap
    unpack "$kind.partial/debs" "$kind.partial/docker" "${docker_packages[@]}"
    unpack "$kind.partial/debs" "$kind.partial/debootstrap" debootstrap
    . "$here/images.sh"
    . "$here/kind/node-image.sh"
    make_node_root "$kind.partial"
    rm -rf "$kind.partial"/{debs,debootstrap}
    mv "$kind.partial" "$kind"
}

[ "$(id -u)" = 0 ] || fail "run it as root: images hold files of several owners"
build_node
build_go_programs "$here/coredns" "$dns" "${coredns_programs[@]}"
build_go_programs "$here/kubernetes" "$programs" "${kubernetes_programs[@]}"
build_images
[ "${1:-}" != --kind ] || build_kind
say "ready: $programs and beside it"
