# What the scripts of this folder share. To be sourced, not run.
# shellcheck shell=bash

# Built tools live here, outside the tree: one folder per tool and version.
# shellcheck disable=SC2034
CACHE=${PLIMSOLL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/plimsoll}

# A progress line for a person, with the seconds since the script started.
say() { printf '%4ds  %s\n' "$SECONDS" "$*" >&2; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Go, of a version that the modules built here accept.
need_go() {
    command -v go >/dev/null || die "go not found: install Go 1.25 or newer, or put the wanted programs on PATH"
    local have
    have=$(go env GOVERSION | sed -E 's/^go([0-9]+)\.([0-9]+).*/\1 \2/')
    local major=${have% *} minor=${have#* }
    ((major > 1 || minor >= 25)) || die "go $major.$minor is too old: install Go 1.25 or newer"
}

# write_go_mod FOLDER 'MODULE VERSION' ['OLD => NEW VERSION' …]: a module of no code of its own that pins what is built.
write_go_mod() {
    local folder=$1 wanted=$2 line
    shift 2
    {
        echo "module plimsoll.invalid/tools"
        echo
        echo "go 1.25.0"
        echo
        echo "require $wanted"
        for line in "$@"; do echo "replace $line"; done
    } > "$folder/go.mod"
}

# go_build FOLDER OUT PACKAGE [LDFLAGS]: one static program, built beside whatever else the machine is doing.
go_build() {
    local folder=$1 out=$2 package=$3 ldflags=${4:-}
    local jobs=${PLIMSOLL_BUILD_JOBS:-2}
    (
        cd "$folder" || exit
        GOMAXPROCS=$jobs GOWORK=off GOFLAGS=-mod=mod CGO_ENABLED=0 \
            nice -n 19 go build -p "$jobs" -trimpath -buildvcs=false -ldflags "-s -w $ldflags" -o "$out.new" "$package"
    )
    mv "$out.new" "$out"
}

# ---- the cluster of scripts/kube/up: where things are

# The addresses it uses, all of them inside its own network namespace but for the host's end of the link.
LINK=plimsoll0
HOST_IP=10.243.0.1
NODE_IP=10.243.0.2
POD_CIDR=10.244.0.0/16
NODE_POD_CIDR=10.244.0.0/24
SERVICE_CIDR=10.96.0.0/16
API_SERVICE_IP=10.96.0.1
DNS_SERVICE_IP=10.96.0.10
NODE_NAME=plimsoll-node
# The cgroup, in every hierarchy, below which its pods run.
CGROUP=plimsoll-kube
# This file says that a folder is a cluster's state, which `down` may remove.
MARKER=.plimsoll-kube

# init_pid STATE: the process whose end is the end of everything in the cluster; fails when it's gone.
init_pid() {
    local pid started
    read -r pid started 2>/dev/null < "$1/init" || return 1
    # The same number may be another process by now: its start time tells.
    [[ $(start_time "$pid") == "$started" ]] || return 1
    echo "$pid"
}

# The start time of a process, in ticks since boot. The name in field 2 may hold anything, so count from its end.
start_time() {
    local line
    line=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # shellcheck disable=SC2086
    set -- ${line##*) }
    echo "${20}"
}

# enter STATE COMMAND…: run a command among the cluster's processes, in their namespaces.
enter() {
    local state=$1 pid
    shift
    pid=$(init_pid "$state") || die "no cluster runs in $state"
    nsenter --target "$pid" --mount --uts --ipc --net --pid --wd=/ -- "$@"
}

# Take away what the end of the cluster's processes leaves on the host: its cgroups, and the link if it is still there.
clean_host() {
    local hierarchy folder
    for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*/; do
        folder=${hierarchy%/}/$CGROUP
        [[ -d $folder ]] || continue
        # A group is busy for a moment after its last process.
        for _ in {1..50}; do
            find "$folder" -depth -type d -exec rmdir {} + 2>/dev/null || true
            [[ -d $folder ]] || break
            sleep 0.1
        done
        [[ ! -d $folder ]] || printf 'warning: could not remove the cgroup %s\n' "$folder" >&2
    done
    ip link del "$LINK" 2>/dev/null || true
}

# remove_state STATE: only a folder that is a cluster's, and only that file system. The mark goes last, so that a removal
# that was cut short can be finished; two may be at it at once.
remove_state() {
    local _
    for _ in {1..20}; do
        [[ -e $1/$MARKER ]] || break
        find "$1" -xdev -mindepth 1 -maxdepth 1 ! -name "$MARKER" -exec rm -rf --one-file-system -- {} + 2>/dev/null || true
        rm -rf --one-file-system -- "$1" 2>/dev/null && break
        sleep 0.1
    done
    [[ ! -e $1/$MARKER ]] || printf 'warning: could not remove %s\n' "$1" >&2
}
