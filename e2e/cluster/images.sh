# Sourced by build.sh: makes the images that Kubernetes' end-to-end tests of networks and CoreDNS ask for, as archives
# that containerd imports, and a containerd store that holds them all, from which every node begins.
#
# Names and versions are those that the tests themselves list. The userland inside is Debian's.

# make_images INTO: $programs, $dns and $node are what build.sh has built.
make_images() {
    local into=$1
    "$programs/e2e.test" --list-images >"$into/.names"
    say "downloading the userland of the images"
    download "$into/debs" "${agnhost_packages[@]}"
    download "$into/iptables-debs" "${iptables_packages[@]}"
    local image
    for image in agnhost pause busybox regression iptables coredns; do
        say "image $image"
        mkdir -p "$into/$image"
        "root_of_$image" "$into" "$into/$image"
        rm -rf "${into:?}/$image"
    done
    make_store "$into"
    rm -rf "$into"/{debs,iptables-debs,.names}
}

# The full names of images of one name, as the tests give them.
names_of() { grep -E "/$2:[^/]*$" "$1/.names" | sort -u; }

# archive ROOT OUT CONFIG NAME...: one layer, in the format of `docker save`; the same bytes for the same files.
archive() {
    local root=$1 out=$2 config=$3 layer id work
    shift 3
    work=$(mktemp -d "$out.XXXXXX")
    tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu -C "$root" -cf "$work/layer.tar" .
    layer=$(sha256sum <"$work/layer.tar" | cut -d' ' -f1)
    printf '{"architecture":"%s","os":"linux","config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],%s},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
        "$(go env GOARCH)" "$config" "$layer" >"$work/config.json"
    id=$(sha256sum <"$work/config.json" | cut -d' ' -f1)
    mv "$work/config.json" "$work/$id.json"
    printf '[{"Config":"%s.json","RepoTags":["%s"],"Layers":["layer.tar"]}]' "$id" "$(printf '%s\n' "$@" | paste -sd, | sed 's/,/","/g')" \
        >"$work/manifest.json"
    tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu -C "$work" -cf "$out" "$id.json" manifest.json layer.tar
    rm -rf "$work"
}

# What no container reads.
slim() { rm -rf "$1"/usr/share/{doc,man,locale,info,bash-completion,perl5,i18n,zoneinfo} "$1"/usr/lib/*-linux-gnu/{gconv,perl-base} "$1/var/cache"; }

# A link for every tool of busybox that is not there in another form.
busybox_links() {
    local tool
    for tool in $("$1/bin/busybox" --list); do
        [ -e "$1/bin/$tool" ] || [ -e "$1/usr/bin/$tool" ] || [ -e "$1/sbin/$tool" ] || [ -e "$1/usr/sbin/$tool" ] ||
            [ -L "$1/bin/$tool" ] || ln -s busybox "$1/bin/$tool"
    done
}

root_of_agnhost() {
    local root=$2 sources names
    unpack "$1/debs" "$root"
    slim "$root"
    mkdir -p "$root"/{tmp,uploads,etc,proc,sys,dev,root,run,var/registry,usr/local/bin}
    chmod 1777 "$root/tmp"
    ln -sf /bin/nc.openbsd "$root/bin/nc"
    [ -e "$root/bin/sh" ] || ln -s bash "$root/bin/sh"
    busybox_links "$root"
    printf '%s\n' root:x:0:0:root:/root:/bin/sh nobody:x:65534:65534:nobody:/:/bin/sh \
        user-defined-in-image:x:1000:1000::/home/u:/bin/sh >"$root/etc/passwd"
    printf '%s\n' root:x:0: nogroup:x:65534: user-defined-in-image:x:1000: \
        group-defined-in-image:x:50000:user-defined-in-image >"$root/etc/group"
    echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
    printf 'tries = 1\ncheck_certificate = off\n' >"$root/etc/wgetrc"
    install "$programs/agnhost" "$root/agnhost"
    ln -s agnhost "$root/agnhost-2"
    install "$dns/coredns" "$root/coredns"
    sources=$(cd "$here/kubernetes" && go list -m -f '{{.Dir}}' k8s.io/kubernetes)
    install -m 644 "$sources"/test/images/agnhost/porter/localhost.{crt,key} "$root/"
    mapfile -t names < <(names_of "$1" agnhost; names_of "$1" glibc-dns-testing)
    archive "$root" "$1/agnhost.tar" '"Entrypoint":["/agnhost"],"Cmd":["pause"]' "${names[@]}"
}

root_of_pause() {
    local sources names
    sources=$(cd "$here/kubernetes" && go list -m -f '{{.Dir}}' k8s.io/kubernetes)
    cc -Os -static -DVERSION="$kubernetes" -o "$2/pause" "$sources/build/pause/linux/pause.c"
    mapfile -t names < <(names_of "$1" pause)
    # The runtime's own name for it, whatever the version.
    archive "$2" "$1/pause.tar" '"Entrypoint":["/pause"],"User":"65535:65535"' "${names[@]}" localhost/pause:node
}

root_of_busybox() {
    local root=$2 names
    unpack "$1/debs" "$root" busybox libc6 libgcc-s1 gcc-12-base libcrypt1
    slim "$root"
    rm -rf "$root/usr/share"
    mkdir -p "$root"/{bin,tmp,etc,root,home,var}
    chmod 1777 "$root/tmp"
    busybox_links "$root"
    echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
    printf '%s\n' root:x:0:0:root:/root:/bin/sh nobody:x:65534:65534::/:/bin/sh >"$root/etc/passwd"
    printf '%s\n' root:x:0: nogroup:x:65534: >"$root/etc/group"
    mapfile -t names < <(names_of "$1" busybox)
    archive "$root" "$1/busybox.tar" '"Cmd":["sh"]' "${names[@]}"
}

root_of_regression() {
    local names
    install "$programs/regression-issue-74839" "$2/regression-issue-74839"
    mapfile -t names < <(names_of "$1" regression-issue-74839)
    archive "$2" "$1/regression.tar" '"Entrypoint":["/regression-issue-74839"]' "${names[@]}"
}

root_of_iptables() {
    local root=$2 tool names
    unpack "$1/iptables-debs" "$root"
    slim "$root"
    mkdir -p "$root"/{tmp,run}
    for tool in {iptables,ip6tables}{,-save,-restore}; do ln -sf xtables-nft-multi "$root/usr/sbin/$tool"; done
    [ -e "$root/bin/sh" ] || ln -s bash "$root/bin/sh"
    mapfile -t names < <(names_of "$1" distroless-iptables)
    archive "$root" "$1/iptables.tar" '"Cmd":["sh"]' "${names[@]}"
}

root_of_coredns() {
    mkdir -p "$2/etc"
    install "$dns/coredns" "$2/coredns"
    archive "$2" "$1/coredns.tar" '"Entrypoint":["/coredns"]' "localhost/coredns:$coredns"
}

# A containerd in namespaces of its own unpacks all archives into a store; nodes start from a copy made of links.
make_store() {
    say "unpacking the images into a store"
    unshare --net --mount --pid --fork --kill-child --mount-proc --propagation private \
        "$here/store.sh" "$node" "$1/store" "$1"/*.tar
}
