#!/usr/bin/env bash
# Process 1 of a machine that Docker runs on, for kind: network, mounts, processes, host name and cgroups of its own.
# It starts dockerd and stays; killing it ends all of the machine. Settings of the whole machine that kubelet changes in a
# node are set again by whoever started this.
#
#   machine.sh FOLDER CGROUPS DATA DOCKER NODE-PROGRAMS
#
# FOLDER is empty and goes with the machine; DATA is Docker's own and stays; DOCKER holds Debian's package, unpacked.
set -euo pipefail

folder=$1 cgroups=$2 data=$3 docker=$4 programs=$5

for hierarchy in memory cpu cpuacct cpuset pids blkio devices freezer; do
    echo 0 >"/sys/fs/cgroup/$hierarchy/$cgroups/daemons/cgroup.procs"
done
hostname docker

mkdir -p "$folder"/{cgroups,log,etc,lib,etc.work,lib.work} "$data"
mount --rbind /sys/fs/cgroup "$folder/cgroups"
mount -t sysfs sysfs /sys
mount --rbind "$folder/cgroups" /sys/fs/cgroup
umount --recursive --lazy "$folder/cgroups"
mount -t tmpfs tmpfs /run
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$folder/etc,workdir=$folder/etc.work" /etc
mount -t overlay overlay -o "lowerdir=/var/lib,upperdir=$folder/lib,workdir=$folder/lib.work" /var/lib
mkdir -p /var/lib/docker /var/lib/containerd /run/lock
mount --bind "$data" /var/lib/docker

mount --make-rshared /

libraries=$(echo "$docker"/usr/lib/*-linux-gnu):$(echo "$programs"/usr/lib/*-linux-gnu)
export PATH=$docker/usr/sbin:$docker/usr/bin:$programs/usr/bin:$programs/usr/sbin:$PATH LD_LIBRARY_PATH=$libraries
# Not every machine may give the right to make a process less likely to be killed: it is left out of what containers get.
cat >/run/runc <<R
#!/bin/bash
words=("\$@")
for ((i = 0; i < \${#words[@]}; i++)); do
    case \${words[i]} in
    --bundle | -b) file=\${words[i + 1]}/config.json ;;
    --process | -p) file=\${words[i + 1]} ;;
    *) continue ;;
    esac
    [ -f "\$file" ] && sed -i 's/"CAP_SYS_RESOURCE",//g; s/,"CAP_SYS_RESOURCE"//g; s/"oomScoreAdj":-[0-9]*/"oomScoreAdj":0/' "\$file"
done
exec $programs/usr/sbin/runc "\$@"
R
chmod +x /run/runc
dockerd --oom-score-adjust=0 --cgroup-parent="/$cgroups/containers" --add-runtime modest=/run/runc --default-runtime modest \
    --storage-driver overlay2 --host unix:///run/docker.sock >>"$folder/dockerd.log" 2>&1 &
dockerd=$!

set +e
while kill -0 "$dockerd"; do
    wait -n
done
exit 1
