# The cache, where everything is kept that outlives a checkout. Sourced by the Makefile's scripts.
# One target folder and one libtorch path: torch-sys compiles its C++ once for each.
[ -n "${BASH_VERSION-}" ] || { echo "hack/env.sh is for bash" >&2; exit 2; }
cache=${XDG_CACHE_HOME:-$HOME/.cache}/carpool
export CARGO_TARGET_DIR=$cache/target
export LIBTORCH=$cache/libtorch
export LD_LIBRARY_PATH=$LIBTORCH/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
venv=$cache/venv
bin=$CARGO_TARGET_DIR/release

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }

# packages NAME...: Debian packages, installed if one is missing, by root. A second apt-get at a time fails, so they take turns.
packages() {
  dpkg -s "$@" >/dev/null 2>&1 && return
  if ((EUID != 0)); then
    say "Debian packages are missing; this installs them, as root: apt-get install --no-install-recommends $*"
    return 1
  fi
  say "installing Debian packages: $*"
  flock --close /run/carpool-packages apt-get update -qq
  DEBIAN_FRONTEND=noninteractive flock --close /run/carpool-packages \
    apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# at_least NAME VERSION FOUND SOURCE: whether a version is the one needed or a later one. Where it isn't, SOURCE is told.
at_least() {
  if [[ -n $3 ]] && printf '%s\n' "$2" "$3" | sort -VC; then return; fi
  say "$1 $2 or later is needed, ${3:-none} was found; $4"
  return 1
}

# has_rust, has_go: whether the toolchain builds this. Debian 12's own do not.
has_rust() {
  at_least Rust "$(awk -F'"' '/^channel/ {print $2}' rust-toolchain.toml)" \
    "$(cargo --version | awk '{print $2}')" "rustup brings it: https://rustup.rs"
}
has_go() {
  at_least Go 1.21 "$(go version | sed -E 's/.*go([0-9.]+).*/\1/')" \
    "from there on it brings what each go.mod names: https://go.dev/dl"
}

# fast_builds: sets `fast`, Cargo's flags with which a change of this workspace's crates is compiled in seconds, and
# `metadata`, Cargo's description of them. Dependencies are shared with other builds; programs lie apart from hack/build's.
fast_builds() {
  local name
  metadata=$(cargo metadata --locked --no-deps --format-version 1)
  fast=()
  for name in $(jq -r '.packages[].name' <<<"$metadata"); do
    fast+=(--config "profile.release.package.$name.opt-level=0" --config "profile.release.package.$name.incremental=true")
  done
  export CARGO_BUILD_BUILD_DIR=$CARGO_TARGET_DIR
  export CARGO_TARGET_DIR=$CARGO_TARGET_DIR/fast
}

# stamp FILE KEY: whether the work that FILE stands for was done for this very KEY.
stamp() { [[ -f $1 && $(<"$1") == "$2" ]]; }

# Cargo tells changed sources by their age alone: sources of another checkout, built later, would pass for these.
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if ! stamp "$CARGO_TARGET_DIR/checkout" "$checkout"; then
  find "$checkout" -name '*.rs' -exec touch {} +
  mkdir -p "$CARGO_TARGET_DIR"
  echo "$checkout" >"$CARGO_TARGET_DIR/checkout"
fi
