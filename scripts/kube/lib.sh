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
        cd "$folder"
        GOMAXPROCS=$jobs GOWORK=off GOFLAGS=-mod=mod CGO_ENABLED=0 \
            nice -n 19 go build -p "$jobs" -trimpath -buildvcs=false -ldflags "-s -w $ldflags" -o "$out.new" "$package"
    )
    mv "$out.new" "$out"
}
