# What the scripts of this folder share. To be sourced, not run.
# shellcheck shell=bash

# shellcheck disable=SC2034
CLUSTER=plimsoll

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}
