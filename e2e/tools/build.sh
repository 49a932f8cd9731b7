#!/usr/bin/env bash
# Makes the machine ready for the bed: installs the few system packages it needs, and builds the genuine Kubernetes
# programs that e2e/tools/go.mod pins. They are built once per set of versions, into a folder outside the clone, and an
# interrupted build goes on where it stopped. With everything in place it ends at once.
#
#   build.sh               do it
#   build.sh --print-dir   only print the folder where the programs are, or will be
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/fairlead

kubernetes=$(sed -n 's|.*k8s\.io/kubernetes \(v[0-9.]*\).*|\1|p' "$here/go.mod" | head -n 1)
minor=${kubernetes#v1.}
minor=${minor%%.*}
stamp=k8s.io/component-base/version
kubernetes_flags="-s -w -X $stamp.gitVersion=$kubernetes -X $stamp.gitMajor=1 -X $stamp.gitMinor=$minor -X $stamp.gitTreeState=clean"
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
key=$({ cat "$here/go.mod" "$here/go.sum"; printf '%s\n' "${programs[@]}"; } | sha256sum | cut -c1-12)
target=$cache/kubernetes-$kubernetes-$key

if [ "${1:-}" = --print-dir ]; then
    echo "$target"
    exit 0
fi

say() { printf 'tools: %s\n' "$*"; }
fail() {
    printf 'tools: %s\n' "$*" >&2
    exit 1
}

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

check_compilers() {
    command -v cargo >/dev/null || fail "cargo is not on the PATH. Install Rust from https://rustup.rs (rust-toolchain.toml names the version)."
    local program
    for program in "${programs[@]}"; do
        [ -x "$target/${program%%|*}" ] && continue
        command -v go >/dev/null || fail "go is not on the PATH, and the Kubernetes programs are not built yet. Install Go 1.26 or newer from https://go.dev/dl."
    done
}

# One line a second on a terminal, one line every half minute in a log.
build() {
    local name=$1 package=$2 flags=$3 into=$4 began=$SECONDS pid every=30 shown=0
    [ -t 1 ] && every=1
    (cd "$here" && CGO_ENABLED=0 exec nice -n 5 go build -trimpath -ldflags "$flags" -o "$into/.$name" "$package") </dev/null &
    pid=$!
    trap 'kill "$pid" 2>/dev/null' EXIT
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        if [ $((SECONDS - began - shown)) -ge "$every" ]; then
            shown=$((SECONDS - began))
            if [ -t 1 ]; then printf '\rtools: building %s ... %ds ' "$name" "$shown"; else say "building $name ... ${shown}s"; fi
        fi
    done
    [ -t 1 ] && [ "$shown" -gt 0 ] && printf '\r\033[K'
    trap - EXIT
    wait "$pid" || fail "building $name ($package) failed, see above"
    mv "$into/.$name" "$into/$name"
    say "built $name in $((SECONDS - began))s"
}

build_programs() {
    [ -d "$target" ] && return
    mkdir -p "$cache"
    exec 9>"$cache/.tools.lock"
    flock --nonblock 9 || {
        say "another build is under way, waiting for it"
        flock 9
    }
    [ -d "$target" ] && return
    local partial=$target.partial program name package flags count=0
    mkdir -p "$partial"
    say "building ${#programs[@]} Go programs of Kubernetes $kubernetes into $target (once; about ten minutes on two cores)"
    for program in "${programs[@]}"; do
        IFS='|' read -r name package flags <<<"$program"
        count=$((count + 1))
        [ -x "$partial/$name" ] && continue
        say "[$count/${#programs[@]}] $name"
        build "$name" "$package" "$flags" "$partial"
    done
    mv "$partial" "$target"
}

install_packages
check_compilers
build_programs
say "ready: $target"
