import { statusScript } from '../system/host-system.js';
import { scriptFunctions, systemFactsScript } from '../system/system-facts.js';

/**
 * What is run on a host to look at it, by `sh -s` as root: POSIX, for dash and busybox. It changes nothing, and a
 * program that the host lacks only leaves its line empty. Prints `key=value`; a key may come several times. $1 is the
 * port of the registry when it is to be asked; Docker is not asked where $2 says so.
 */
export const hostScript = `
{
echo "time=$(date +%s.%N)"
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
export LC_ALL=C
knowsDocker=$2
${scriptFunctions}

system() {
${systemFactsScript}
if has containerd; then echo "runtime=containerd $(brief containerd --version | awk '{print $3}')"; fi
if has crio; then echo "runtime=cri-o $(brief crio --version | awk '/^(crio version|Version:)/ {print $NF; exit}')"; fi
if has podman; then echo "runtime=podman $(brief podman --version | awk '{print $3}')"; fi
}

askRegistry() {
if [ -n "$1" ]; then
  echo "registryStatus=$(set -- "http://127.0.0.1:$1/v2/" 127.0.0.1 "$1" /v2/
${statusScript})"
fi
}

machine() {
echo "machine=$(uname -m)"
for program in apt-get dnf yum zypper apk; do if has "$program"; then echo "packageManager=$program"; break; fi; done
if has getconf; then echo "cpus=$(getconf _NPROCESSORS_ONLN)"; else echo "cpus=$(grep -c '^processor' /proc/cpuinfo)"; fi
sed -n 's/^MemTotal: *\\([0-9]*\\) kB/memoryKiB=\\1/p; s/^SwapTotal: *\\([0-9]*\\) kB/swapKiB=\\1/p' /proc/meminfo
df -Pk / /var/lib 2>/dev/null | awk 'NR == 2 {print "rootKiB=" $2; print "rootFreeKiB=" $4} NR == 3 {print "diskFreeKiB=" $4}'
# Where a configuration writes. What the user may not write is another matter, so the kernel is asked how the folder is mounted.
for folder in /etc /var/lib /run; do
  room=$(df -Pk "$folder" 2>/dev/null | awk 'NR == 2 {print $4, $6}')
  files=$(df -Pi "$folder" 2>/dev/null | awk 'NR == 2 && $2 > 0 {print $4}')
  if awk -v at="\${room#* }" '$2 == at {options = $4} END {exit "," options "," !~ /,ro,/}' /proc/mounts 2>/dev/null; then echo "unwritable=$folder is mounted read-only"
  elif [ "\${room%% *}" ] && [ "\${room%% *}" -lt 1024 ]; then echo "unwritable=$folder has no space left"
  elif [ "$files" ] && [ "$files" -lt 32 ]; then echo "unwritable=$folder has no inode left"; fi
done
if [ -d /run/systemd/system ]; then echo "systemd=yes"; fi
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then echo "cgroup=2"; elif [ -d /sys/fs/cgroup/memory ]; then echo "cgroup=1"; fi
}

ports() {
# ss asks the kernel for what listens only, which takes a tenth of the time of its list of everything.
if has ss && listening=$(ss -ltnp 2>/dev/null); then
  printf '%s\\n' "$listening" | awk '$1 == "LISTEN" {
    n = split($4, part, ":")
    if (!seen[part[n]]++) print "listensOn=" part[n]
    if (match($0, /users:\\(\\("[^"]*"/)) print "program=" part[n] " " substr($0, RSTART + 9, RLENGTH - 10)
    if (NR == 1000) exit
  }'
else
  # State 0A is LISTEN; the port is hexadecimal behind the last colon.
  cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk '$4 == "0A" {n = split($2, part, ":"); if (!seen[part[n]]++) print "listens=" part[n]}' | head -n 1000
  if has netstat; then
    netstat -ltnp 2>/dev/null | awk '$6 == "LISTEN" {n = split($4, part, ":"); split($7, own, "/"); if (own[2] != "") print "program=" part[n] " " own[2]}' | head -n 1000
  fi
fi
}

packages() {
conflicts='^(kubelet|kubeadm|kubernetes-.*|pf9-.*|k3s.*|rke2.*|microk8s)$'
if has dpkg-query; then
  dpkg-query -W -f '\${db:Status-Abbrev} \${Package} \${Version}\\n' 2>/dev/null | awk -v names="$conflicts" 'substr($1, 2, 1) == "i" && $2 ~ names && n++ < 50 {print "conflict=" $2 " " $3}'
fi
if has rpm; then brief rpm -qa --qf '%{NAME} %{VERSION}\\n' | awk -v names="$conflicts" '$1 ~ names && n++ < 50 {print "conflict=" $1 " " $2}'; fi
# These come without a package.
for program in k3s rke2 microk8s; do if has "$program"; then echo "conflict=$program"; fi; done
}

# What can hold ports, what holds some already, and what sshd says that it lets the user do.
holders() {
if [ -d /run/systemd/system ]; then
  for folder in /usr/lib/systemd /lib/systemd; do
    if [ -x "$folder/systemd-socket-proxyd" ]; then echo "proxyd=$folder/systemd-socket-proxyd"; break; fi
  done
  echo "systemdVersion=$(brief systemctl --version | awk 'NR == 1 {print $2}')"
  for name in registry packages; do
    unit=airdock-$name.socket
    if [ -e "/etc/systemd/system/$unit" ] && [ -e "/etc/systemd/system/sockets.target.wants/$unit" ] && systemctl -q is-active "$unit"; then
      # A drop-in can add addresses.
      brief systemctl show -p Listen "$unit" | sed -n "s/^Listen[A-Za-z]*=\\([^ ]*\\).*/\\1/p" | while read -r address; do
        case "$address" in 127.* | '[::1]:'*) ;; *) echo "exposed=$unit listens on $address" ;; esac
      done
      sed -n "s/^ListenStream=127[.]0[.]0[.]1:\\([0-9]*\\)$/holds=$name \\1/p" "/etc/systemd/system/$unit"
    fi
  done
fi
if [ -e /proc/net/if_inet6 ]; then echo ipv6=yes; fi
echo "userId=\${SUDO_UID:-$(id -u)}"
if has sshd; then
  brief sshd -T -C "user=\${SUDO_USER:-$(id -un)},host=localhost,addr=127.0.0.1" | awk '$1 ~ /^(allowstreamlocalforwarding|disableforwarding)$/ {print $1 "=" $2}'
fi
}

firewall() {
if has firewall-cmd && [ "$(brief firewall-cmd --state)" = running ]; then echo "firewall=firewalld"; fi
if has ufw && brief ufw status | grep -q '^Status: active'; then echo "firewall=ufw"; fi
# Rules for what comes in and goes out; those for what passes through are mostly the runtime's own.
if has iptables; then
  rules=$(for chain in INPUT OUTPUT; do brief iptables -S "$chain"; done | grep -vc '^-P [A-Z]* ACCEPT')
  if [ "$rules" -gt 0 ]; then echo "firewall=iptables with $rules rules"; fi
fi
if has nft; then
  rules=$(brief nft list ruleset | awk '/^[ \\t]*chain /{own = 0} /hook (input|output)/ {own = 1; if (/policy drop/) n++} own && / (drop|reject)/ && !/policy/ {n++} END {print n + 0}')
  if [ "$rules" -gt 0 ]; then echo "firewall=nftables with $rules rules that refuse"; fi
fi
}

# Side by side; what one prints waits in its pipe until the next one has ended, so that no line gets into another.
elsewhere() { packages; askRegistry "$1"; }
here() { machine; ports; firewall; }
system | { elsewhere "$1" </dev/null | { holders </dev/null | { here </dev/null; cat; }; cat; }; cat; }
exit 0
} </dev/null
`;
