#!/usr/bin/env bash
# Process 1 of a node: a machine of its own as far as network, mounts, processes, host name and cgroups go. It starts
# containerd and kubelet and stays; killing it ends all of the node. Nothing of the machine outside is changed.
#
#   node.sh NAME FOLDER CGROUPS STORE NODE-PROGRAMS KUBELET POD-NETWORKS ADDRESSES IPTABLES
#
# FOLDER holds the node's data, and kubelet.yaml and kubeconfig already; CGROUPS is a path below every hierarchy; STORE
# is the containerd store that the node begins with. Networks and addresses are one per family, with a comma. IPTABLES is
# a folder whose iptables is the node's, or empty for that of this machine.
set -euo pipefail

name=$1 folder=$2 cgroups=$3 store=$4 programs=$5 kubelet=$6 pods=$7 addresses=$8 iptables=$9

# What is started from here on is counted as the node's daemons, beside the Pods.
for hierarchy in memory cpu cpuacct cpuset pids blkio devices freezer; do
    echo 0 >"/sys/fs/cgroup/$hierarchy/$cgroups/daemons-$name/cgroup.procs"
done
hostname "$name"

# /sys shows the network of the process that mounts it; the cgroups stay what they are.
mkdir -p "$folder"/{cgroups,kubelet,log,etc,lib,etc.work,lib.work}
mount --rbind /sys/fs/cgroup "$folder/cgroups"
mount -t sysfs sysfs /sys
mount --rbind "$folder/cgroups" /sys/fs/cgroup
umount --recursive --lazy "$folder/cgroups"

# Places where programs of a node write, whatever they are told.
mount -t tmpfs tmpfs /run
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$folder/etc,workdir=$folder/etc.work" /etc
mount -t overlay overlay -o "lowerdir=/var/lib,upperdir=$folder/lib,workdir=$folder/lib.work" /var/lib
mount --bind "$folder/log" /var/log
mkdir -p /run/{containerd,netns,lock} /var/lib/{kubelet,containerd,cni} /etc/cni/net.d /var/log/{pods,containers}
mount --bind "$folder/kubelet" /var/lib/kubelet

# kubelet insists on these settings of the whole machine: here it finds them as it wants them, and leaves them alone.
settle() {
    echo "$2" >"/run/sysctl-${1//\//-}"
    mount --bind "/run/sysctl-${1//\//-}" "/proc/sys/$1"
}
settle vm/overcommit_memory 1
settle vm/panic_on_oom 0
settle kernel/panic 10
settle kernel/panic_on_oops 1
settle kernel/keys/root_maxkeys 1000000
settle kernel/keys/root_maxbytes 25000000

# The store's files are never written to, but for its databases.
if [ ! -d "$folder/containerd" ]; then
    cp --archive --link "$store" "$folder/containerd"
    find "$folder/containerd" -name '*.db' -exec cp --remove-destination {} {}.own \; -exec mv {}.own {} \;
fi
mount --bind "$folder/containerd" /var/lib/containerd
mount --make-rshared /

ranges=$(printf '[{"subnet": "%s"}], ' ${pods//,/ })
routes='{"dst": "0.0.0.0/0"}'
[[ $pods != *:* ]] || routes+=', {"dst": "::/0"}'
cat >/etc/cni/net.d/10-bridge.conflist <<C
{"cniVersion": "0.4.0", "name": "bridge", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true, "mtu": 1500,
   "ipam": {"type": "host-local", "ranges": [${ranges%, }], "routes": [$routes]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
C
# Not every machine lets a process make itself less likely to be killed for want of memory.
cat >/run/containerd.toml <<C
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:node"
  disable_apparmor = true
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$programs/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
C

libraries=$(echo "$programs"/usr/lib/*-linux-gnu)
export PATH=${iptables:+$iptables:}$programs/usr/bin:$programs/usr/sbin:$PATH LD_LIBRARY_PATH=$libraries
containerd --config /run/containerd.toml >>"$folder/containerd.log" 2>&1 &
containerd=$!
for _ in {1..300}; do
    ctr --address /run/containerd/containerd.sock version >/dev/null 2>&1 && break
    sleep 0.1
done
# Process 1 is the parent of every orphan, and starts kubelet anew when it ends, as a service manager does: it does when
# containerd answers but is not ready for it. When containerd ends, so does the node.
set +e
while kill -0 "$containerd"; do
    "$kubelet" --config="$folder/kubelet.yaml" --kubeconfig="$folder/kubeconfig" --hostname-override="$name" \
        --node-ip="$addresses" -v=2 >>"$folder/kubelet.log" 2>&1 &
    wait -n
    sleep 0.5
done
exit 1
