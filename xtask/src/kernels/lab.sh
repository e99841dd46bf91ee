# Runs as the first process of a virtual machine: makes a lab of three nodes, publishes a port, and
# asks every node. Its lines on the console begin with `mesh-vm:`.
export HOME=/root LC_ALL=C.UTF-8
# The binaries are there, and everything is slow here.
export MESH_LAB_PREBUILT=1 MESH_LAB_PATIENCE=10
cd "$CHECKOUT"
lab="target/debug/xtask-lab lab --name vm"
port=8080

say() { echo "mesh-vm: $*"; }
end() {
    say "lab ended with $1"
    sync
    echo o > /proc/sysrq-trigger
    sleep 60
}
now() { cut -d. -f1 /proc/uptime; }

ip link set lo up
for module in veth bridge br_netfilter vxlan tun overlay nf_tables nft_ct nft_compat nf_nat xt_MASQUERADE xt_addrtype \
    xt_conntrack sch_ingress cls_bpf; do
    modprobe "$module" || say "can't load $module"
done
say "begun on $(uname -r)"
# Every hook must be attached in the way that this kernel has.
case $(uname -r) in 6.[0-5].*) mode=clsact other=tcx ;; *) mode=tcx other=clsact ;; esac
$lab up --nodes 3 --managers 1 --datapath tc || { tail -n 20 /var/lib/mesh-lab/vm/node-*/log/*.log; end 1; }
say "three nodes after $(now) s"
attached() { grep -ho "program attached.*mode=\"$1\"" /var/lib/mesh-lab/vm/node-*/log/agent.log | wc -l; }
say "$(attached $mode) programs attached by $mode, $(attached $other) by $other"
[ "$(attached $mode)" -ge 6 ] && [ "$(attached $other)" -eq 0 ] || end 1
DOCKER_HOST=$(jq -r '.nodes[0].mesh_host' target/lab-vm/lab.json)
export DOCKER_HOST
# etcd may have no leader for a moment, as all is slow here.
for attempt in 1 2 3 4 5; do
    docker service inspect web > /dev/null 2>&1 && break
    docker service create --detach --no-resolve-image --name web --replicas 2 -p $port:80 whoami && break
    [ $attempt -lt 5 ] || end 1
    sleep 10
done
created=$(now)
for node in 1 2 3; do
    # jq succeeds on no input, so the name itself is looked at.
    until answer=$($lab exec client -- curl --fail --silent --show-error --max-time 10 "http://10.77.0.1$node:$port/") &&
        name=$(echo "$answer" | jq -er .hostname) && [ -n "$name" ]; do
        if [ $(($(now) - created)) -gt 900 ]; then
            docker service ps --no-trunc web
            tail -n 20 /var/lib/mesh-lab/vm/node-*/log/agent.log
            say "node-$node doesn't answer"
            end 1
        fi
        sleep 1
    done
    say "node-$node answers after $(($(now) - created)) s: task $name"
done
docker service ps web --format '{{.Name}} {{.Node}} {{.CurrentState}}' | while read -r line; do say "$line"; done
end 0
