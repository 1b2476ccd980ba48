#!/bin/sh
# Counts GC content and 3-mers of every sequence in one FASTA file: a workload for lighthpc.
# It needs sh and awk, reads $LIGHTHPC_INPUT, writes $LIGHTHPC_OUTPUT, and reports its progress in $LIGHTHPC_PROGRESS.
set -eu

sequences=$(grep -c '^>' "$LIGHTHPC_INPUT") || {
	echo "gc.sh: no FASTA sequence in $LIGHTHPC_SRC_ID" >&2
	exit 1
}

# The environment passes the file name, because awk interprets "a=b" and backslashes in an argument.
awk -v sequences="$sequences" '
function report(    kmer, mers, line) {
    if (name == "") return
    length_sum += bases
    gc_sum += gc
    printf "%-14s %8d %8d %7.2f%%", name, bases, gc, bases ? 100 * gc / bases : 0
    # The four most frequent 3-mers, the most frequent first; equal counts in alphabetical order.
    for (mers = 0; mers < 4; mers++) {
        line = ""
        for (kmer in count)
            if (line == "" || count[kmer] > count[line] || (count[kmer] == count[line] && kmer < line)) line = kmer
        if (line == "") break
        printf "  %s %d", line, count[line]
        delete count[line]
    }
    printf "\n"
    for (kmer in count) delete count[kmer]
    printf "%d%% %s\n", 100 * ++seen / sequences, name >>progress
    fflush(progress)
    system("sleep 0.1") # so that a person can see the progress
}
BEGIN {
    progress = ENVIRON["LIGHTHPC_PROGRESS"]
    printf "# GC content of %s\n", ENVIRON["LIGHTHPC_SRC_ID"]
    printf "%-14s %8s %8s %8s  %s\n", "sequence", "bases", "G+C", "GC", "most frequent 3-mers"
    while ((getline <ENVIRON["LIGHTHPC_INPUT"]) > 0) {
        sub(/\r$/, "")
        if (/^>/) {
            report()
            name = substr($1, 2)
            bases = gc = 0
            tail = ""
            continue
        }
        $0 = toupper($0)
        bases += length($0)
        # A 3-mer may begin on one line and end on the next.
        text = tail $0
        for (at = 1; at <= length(text) - 2; at++) {
            kmer = substr(text, at, 3)
            if (kmer ~ /^[ACGT]+$/) count[kmer]++
        }
        tail = substr(text, length(text) - 1)
        gc += gsub(/[GC]/, "")
    }
    report()
    printf "%-14s %8d %8d %7.2f%%\n", "all", length_sum, gc_sum, length_sum ? 100 * gc_sum / length_sum : 0
}' >"$LIGHTHPC_OUTPUT"
