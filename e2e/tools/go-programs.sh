# Sourced by scripts that build Go programs outside the clone, each once per set of versions. Whoever sources it sets
# `label`, which begins the lines printed.
#
# A program is `name|Go package|linker flags`; a fourth field `test` builds the package's tests as a program.

cache=${XDG_CACHE_HOME:-$HOME/.cache}/fairlead

say() { printf '%s: %s\n' "$label" "$*"; }
fail() {
    say "$*" >&2
    exit 1
}

# The version of Kubernetes that a go.mod pins, and the linker flags that make its programs know their version.
kubernetes_version() { sed -n 's|.*k8s\.io/kubernetes \(v[0-9.]*\).*|\1|p' "$1" | head -n 1; }
kubernetes_flags() {
    local version=$1 minor=${1#v1.} stamp=k8s.io/component-base/version
    minor=${minor%%.*}
    echo "-s -w -X $stamp.gitVersion=$version -X $stamp.gitMajor=1 -X $stamp.gitMinor=$minor -X $stamp.gitTreeState=clean"
}

# Names a state of a module and a list of programs: it changes with the versions and with how they are built.
go_key() {
    local module=$1
    shift
    { cat "$module/go.mod" "$module/go.sum"; printf '%s\n' "$@"; } | sha256sum | cut -c1-12
}

# Takes the lock of everything that is slow to build, until the script ends.
lock_cache() {
    mkdir -p "$cache"
    exec 9>"$cache/.tools.lock"
    flock --nonblock 9 || {
        say "another build is under way, waiting for it"
        flock 9
    }
}

# Runs a command in a folder; one line a second on a terminal, one line every half minute in a log.
with_progress() {
    local what=$1 folder=$2 began=$SECONDS pid every=30 shown=0
    shift 2
    [ -t 1 ] && every=1
    (cd "$folder" && exec nice -n 5 "$@") </dev/null &
    pid=$!
    trap 'kill "$pid" 2>/dev/null' EXIT
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        if [ $((SECONDS - began - shown)) -ge "$every" ]; then
            shown=$((SECONDS - began))
            if [ -t 1 ]; then printf '\r%s: building %s ... %ds ' "$label" "$what" "$shown"; else say "building $what ... ${shown}s"; fi
        fi
    done
    [ -t 1 ] && [ "$shown" -gt 0 ] && printf '\r\033[K'
    trap - EXIT
    wait "$pid" || fail "building $what failed, see above"
    say "built $what in $((SECONDS - began))s"
}

# build_go_programs MODULE TARGET PROGRAM...: an interrupted build goes on where it stopped.
build_go_programs() {
    local module=$1 target=$2 program name package flags kind count=0
    shift 2
    [ -d "$target" ] && return
    command -v go >/dev/null || fail "go is not on the PATH, and $target is not built yet. Install Go 1.26 or newer from https://go.dev/dl."
    lock_cache
    [ -d "$target" ] && return
    mkdir -p "$target.partial"
    for program in "$@"; do
        IFS='|' read -r name package flags kind <<<"$program"
        count=$((count + 1))
        [ -x "$target.partial/$name" ] && continue
        say "[$count/$#] $name"
        local verb=(build)
        [ "$kind" = test ] && verb=(test -c)
        with_progress "$name" "$module" env CGO_ENABLED=0 go "${verb[@]}" -trimpath -ldflags "$flags" -o "$target.partial/.$name" "$package"
        mv "$target.partial/.$name" "$target.partial/$name"
    done
    mv "$target.partial" "$target"
}
