#!/bin/sh
# The workload of the boot tests, installed as a user's own is: by --workload of scripts/provision.
set -eu
install -D -m 0755 -t /opt/boot-test try inside
