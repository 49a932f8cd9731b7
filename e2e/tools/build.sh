#!/usr/bin/env bash
# Makes the machine ready for the bed: installs the few system packages it needs, and builds the genuine Kubernetes
# programs that e2e/tools/go.mod pins. They are built once per set of versions, into a folder outside the clone, and an
# interrupted build goes on where it stopped. With everything in place it ends at once.
#
#   build.sh               do it
#   build.sh --print-dir   only print the folder where the programs are, or will be
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
label=tools
. "$here/go-programs.sh"

kubernetes=$(kubernetes_version "$here/go.mod")
kubernetes_flags=$(kubernetes_flags "$kubernetes")
plain_flags="-s -w"

# name, Go package, linker flags: the ones a bed cannot do without come first.
programs=(
    "etcd|go.etcd.io/etcd/server/v3|$plain_flags"
    "etcdctl|go.etcd.io/etcd/etcdctl/v3|$plain_flags"
    "kubectl|k8s.io/kubernetes/cmd/kubectl|$kubernetes_flags"
    "kube-apiserver|k8s.io/kubernetes/cmd/kube-apiserver|$kubernetes_flags"
    "kube-controller-manager|k8s.io/kubernetes/cmd/kube-controller-manager|$kubernetes_flags"
    "kube-proxy|k8s.io/kubernetes/cmd/kube-proxy|$kubernetes_flags"
)

# The folder's name changes with the versions and with how they are built, and with nothing else.
target=$cache/kubernetes-$kubernetes-$(go_key "$here" "${programs[@]}")

if [ "${1:-}" = --print-dir ]; then
    echo "$target"
    exit 0
fi

# command:package pairs; ip6tables, iptables-save and the nft and legacy variants come with iptables.
needed=(iptables:iptables nft:nftables conntrack:conntrack ip:iproute2 nsenter:util-linux setpriv:util-linux cc:gcc flock:util-linux)

install_packages() {
    local pair missing=()
    for pair in "${needed[@]}"; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
    done
    [ ${#missing[@]} -eq 0 ] && return
    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
    command -v apt-get >/dev/null || fail "missing: ${missing[*]}. Install them; this script knows apt-get only."
    [ "$(id -u)" = 0 ] || fail "missing: ${missing[*]}. Run as root, or install them: apt-get install ${missing[*]}"
    # A C compiler without its headers links nothing.
    case " ${missing[*]} " in *" gcc "*) missing+=(libc6-dev) ;; esac
    say "installing ${missing[*]}"
    apt-get update -qq </dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >/dev/null
}

install_packages
command -v cargo >/dev/null || fail "cargo is not on the PATH. Install Rust from https://rustup.rs (rust-toolchain.toml names the version)."
[ -d "$target" ] || say "building ${#programs[@]} Go programs of Kubernetes $kubernetes into $target (once; about ten minutes on two cores)"
build_go_programs "$here" "$target" "${programs[@]}"
say "ready: $target"
