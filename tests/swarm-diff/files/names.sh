#!/bin/sh
# names.sh SERVICE NAME[:COUNT]... shows what a task of SERVICE on the asked node finds under each
# name. Addresses are shown by their owner (db.1@net: the task's on that network; vip-of-db@net), and
# ptr/OWNER asks for the name of an owner's address. With a COUNT it waits for that many answers.
set -u
asker=$1
shift
container=$(docker ps -q --filter "label=com.docker.swarm.service.name=$asker" | head -1)
all=$(docker network ls --no-trunc --filter scope=swarm --format 's/ {{.ID}}$/@{{.Name}}/')
owners=$(
    docker service inspect $(docker service ls -q) -f \
        '{{$name := .Spec.Name}}{{range .Endpoint.VirtualIPs}}{{.Addr}} vip-of-{{$name}} {{.NetworkID}}
{{end}}' | sed "$all"
    docker service ps $(docker service ls -q) --no-trunc --filter desired-state=running --format '{{.ID}} {{.Name}}' |
        while read -r id name; do
            docker inspect "$id" -f '{{range .NetworksAttachments}}{{.Network.Spec.Name}}{{range .Addresses}} {{.}}{{end}}
{{end}}' | awk -v "name=$name" 'NF == 2 { print $2, name "@" $1 }'
        done
)

# The answers to one question, a line each.
answers() {
    docker exec "$container" nslookup -timeout=2 -retry=1 "$@" 2>&1 |
        sed -n '1,/^$/d; s/^Address: //p; s/.*[[:space:]]name = //p' |
        awk -v "owners=$owners" '
            BEGIN {
                count = split(owners, lines, "\n")
                for (i = 1; i <= count; i++) { split(lines[i], words, "[/ ]"); owner[words[1]] = words[3] }
            }
            { print ($1 in owner) ? owner[$1] : $1 }' | sort
}

for asked in "$@"; do
    name=${asked%:*}
    count=0
    test "$name" = "$asked" || count=${asked##*:}
    case $name in
    ptr/*) question=$(echo "$owners" | awk -v "owner=${name#ptr/}" '$2 == owner { sub("/.*", "", $1); print $1 }') ;;
    *) question="-type=a $name" ;;
    esac
    tries=0
    found=$(answers $question)
    while test "$(echo "$found" | grep -c .)" -lt "$count" && test $tries -lt 20; do
        sleep 1
        tries=$((tries + 1))
        found=$(answers $question)
    done
    echo "$name:" ${found:-nothing}
done
