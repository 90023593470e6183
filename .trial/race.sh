mkdir -p /tmp/race
X="--kernel-name-exclude kns=at6native --kernel-name-exclude kns=cutlass --kernel-name-exclude kns=gemm --kernel-name-exclude kns=nvjet --kernel-name-exclude kns=fmha"
r() { n=$1; shift; s=$(date +%s); timeout 150 compute-sanitizer --tool racecheck $X "$@" > /tmp/race/$n 2>&1; echo "$n rc $? $(($(date +%s)-s)) s $(grep -E 'SUMMARY|Internal|not supported' /tmp/race/$n | tail -1) $(grep -oE 'at [a-z_]+[a-z_0-9]*\(' /tmp/race/$n | sort | uniq -c | tr '\n' ' ') | $(grep -v '=====' /tmp/race/$n | tail -2 | tr '\n' ' ' | cut -c1-150)"; }
for w in staged append gate legal select; do r $w python3 .trial/race.py $w & done
r select-test python3 -m pytest -q -x -p no:cacheprovider "tests/gpu/test_beam_select.py" -k "$1" &
wait
