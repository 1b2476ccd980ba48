#!/bin/sh
# Installs your own files on the image. It runs as root, in this folder, on the build instance. Put your program
# into this folder and install it to /opt or /usr/local (/home and /root are hidden from workloads). For example:
#
#   dnf install --assumeyes --quiet blast
#   install -D -m 0755 my-program /opt/app/my-program
#
# Then name it in the mission (`lighthpc submit … -- /opt/app/my-program`), or in LIGHTHPC_EXEC.
set -eu
