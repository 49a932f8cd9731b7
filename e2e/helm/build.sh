#!/usr/bin/env bash
# Builds Helm, which installs and checks manifests/chart, from the Go module beside this script, once per version, into a
# folder outside the clone. With it in place this ends at once.
#
#   build.sh               do it
#   build.sh --print-path  only print where the program is, or will be
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/fairlead
package=helm.sh/helm/v4/cmd/helm
version=$(sed -n 's|^\s*helm\.sh/helm/v4 \(v[0-9.]*\).*|\1|p' "$here/go.mod")
flags="-s -w -X helm.sh/helm/v4/internal/version.version=$version"
key=$({ cat "$here/go.mod" "$here/go.sum"; echo "$flags"; } | sha256sum | cut -c1-12)
program=$cache/helm-$version-$key/helm

if [ "${1:-}" = --print-path ]; then
    echo "$program"
    exit 0
fi

say() { printf 'helm: %s\n' "$*"; }

[ ! -x "$program" ] || exit 0
command -v go >/dev/null || {
    say "go is not on the PATH, and Helm is not built yet. Install Go 1.26 or newer from https://go.dev/dl." >&2
    exit 1
}
mkdir -p "$(dirname "$program")"
exec 9>"$cache/.helm.lock"
flock 9
[ ! -x "$program" ] || exit 0
say "building Helm $version (once; some minutes)"
(cd "$here" && CGO_ENABLED=0 nice -n 5 go build -trimpath -ldflags "$flags" -o "$program.partial" "$package") </dev/null
mv "$program.partial" "$program"
say "ready: $program"
