#!/usr/bin/env bash
# Imports image archives into a new containerd store. It runs in network, mount and process namespaces made for it.
#
#   store.sh NODE-PROGRAMS STORE ARCHIVE...
set -euo pipefail

node=$1 store=$2
shift 2
libraries=$(echo "$node"/usr/lib/*-linux-gnu)
export PATH=$node/usr/bin:$node/usr/sbin:$PATH LD_LIBRARY_PATH=$libraries
mkdir -p "$store"
mount -t tmpfs tmpfs /run
cat >/run/config.toml <<T
version = 2
root = "$store"
state = "/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "/run/containerd.sock"
T
containerd --config /run/config.toml >/run/log 2>&1 &
trap 'kill %1; wait' EXIT
for _ in {1..100}; do
    ctr --address /run/containerd.sock version >/dev/null 2>&1 && break
    sleep 0.1
done
for archive in "$@"; do
    ctr --address /run/containerd.sock --namespace k8s.io images import "$archive" >/dev/null || {
        cat /run/log >&2
        exit 1
    }
done
ctr --address /run/containerd.sock --namespace k8s.io images list --quiet | grep -v sha256: >"$store/../images.txt"
