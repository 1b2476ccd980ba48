#!/bin/sh
# What is yours on the image. This is run as root, in this folder, on the machine that is baked. Put your program beside it,
# and install it to /opt or /usr/local (/home and /root are hidden from workloads), for example:
#
#   dnf install --assumeyes --quiet blast
#   install -D -m 0755 my-program /opt/app/my-program
#
# and name it in the mission (`lighthpc submit … -- /opt/app/my-program`), or in LIGHTHPC_EXEC.
set -eu
