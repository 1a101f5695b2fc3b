# Where everything that outlives a checkout is kept; sourced by the Makefile's scripts.
# One target folder and one libtorch path: torch-sys compiles its C++ once for each.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/carpool
export CARGO_TARGET_DIR=$cache/target
export LIBTORCH=$cache/libtorch
export LD_LIBRARY_PATH=$LIBTORCH/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
venv=$cache/venv
bin=$CARGO_TARGET_DIR/release

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }

# packages NAME...: Debian packages, installed if one is missing.
packages() {
  dpkg -s "$@" >/dev/null 2>&1 && return
  say "installing Debian packages: $*"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# stamp FILE KEY: whether the work that FILE stands for was done for this very KEY.
stamp() { [[ -f $1 && $(<"$1") == "$2" ]]; }
