#!/bin/sh
# What the tests marked "android" need, on Debian and Ubuntu, as root: adb, and Debian's own adbd in a root file system of its own,
# with Android's shell (mksh) and tools (toybox).
# adbd_setup.sh FOLDER makes that root file system unless it is there.
set -eu
folder=${1:-build/adbd-rootfs}
packages=adbd,mksh,toybox
missing=
for pair in adb:adb debootstrap:debootstrap unshare:util-linux nsenter:util-linux ip:iproute2; do
  command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair##*:}"
done
if [ -n "$missing" ]; then
  apt-get update -qq
  # shellcheck disable=SC2086
  apt-get install -y -qq --no-install-recommends $missing debian-archive-keyring
fi
if [ "$(cat "$folder/complete" 2>/dev/null)" != "$packages" ]; then
  rm -rf "$folder"
  mkdir -p "$folder"
  # bookworm has no adbd.
  debootstrap --variant=minbase --include="$packages" trixie "$folder"
  echo "$packages" > "$folder/complete"
fi
