# Shared by lab/run, lab/image and lab/setup: suites, cache, tools, messages.
# shellcheck shell=bash

lab_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
suites=(bookworm trixie)
cache_dir=${PADDOCK_LAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/paddock-lab}

# Exit statuses of the lab's own, as in timeout(1) and env(1).
# shellcheck disable=SC2034 # lab/run uses them all
readonly status_died=123 status_timeout=124 status_lab=125

say() { printf 'lab: %s\n' "$*" >&2; }

die() {
  say "$@"
  exit "$status_lab"
}

require_suite() {
  local suite
  for suite in "${suites[@]}"; do
    [[ $1 == "$suite" ]] && return 0
  done
  die "'$1' is not a suite the lab knows; use one of: ${suites[*]}"
}

# Prints the Debian packages whose programs or files are missing here.
missing_packages() {
  local tool package
  while read -r tool package; do
    command -v "$tool" >/dev/null 2>&1 || [[ -x /usr/sbin/$tool || -x /sbin/$tool ]] ||
      printf '%s\n' "$package"
  done <<'END'
qemu-system-x86_64 qemu-system-x86
mmdebstrap mmdebstrap
mke2fs e2fsprogs
flock util-linux
setpriv util-linux
mount mount
END
  # Without root, mmdebstrap works in a user namespace.
  ((EUID == 0)) || command -v newuidmap >/dev/null || printf 'uidmap\n'
  # Hosts as old as Debian 12.0 do not know the keys that sign trixie.
  [[ -e /usr/share/keyrings/debian-archive-trixie-stable.gpg ||
    -e /usr/share/keyrings/debian-archive-trixie-stable.pgp ]] ||
    printf 'debian-archive-keyring\n'
}

require_tools() {
  local missing
  missing=$(missing_packages | sort -u | tr '\n' ' ')
  [[ -z $missing ]] || die "missing here: ${missing% }; 'lab/setup' installs them"
  PATH=$PATH:/usr/sbin:/sbin
}

# The directory of the suite's image: its name carries a hash of everything the
# image is made from, so a changed recipe is another image.
image_dir() {
  local hash
  hash=$(cd "$lab_dir" && sha256sum image guest/* | sha256sum)
  printf '%s/%s-%s\n' "$cache_dir" "$1" "${hash:0:16}"
}
