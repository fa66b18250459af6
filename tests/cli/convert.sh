# convert: round trip, recipes, and everything that must leave nothing half-written.
. tests/cli/check.inc

set -- --method x-ecomla --cache 50%
answers "$kvfold" convert $books "$work/x" "$@" --json
is source_cache_elements_per_token 2048
is cache_elements_per_token 1024
is layers_converted 8
answers "$kvfold" info "$work/x" --json
is attention latent
is method x-ecomla
is cache_bytes_per_token 2048
answers "$kvfold" eval "$work/x" --reference $books --text $held_out --window 128 --max-windows 4 --compute f32 --json
[ "$(value kl)" != 0.0 ] || fail "half the cache cannot be without loss"
answers "$kvfold" generate "$work/x" --prompt "It was" --greedy --max-new-tokens 4 --json

# Everything kept: the same model.
answers "$kvfold" convert $books "$work/full" --method mha2mla --dtype f32 --set rope_policy=high rope_pairs=16 --set rank=128 --json
answers "$kvfold" eval "$work/full" --reference $books --text $held_out --window 128 --max-windows 4 --compute f32 --json
near kl 0 1e-6
answers "$kvfold" convert $books "$work/same" --method none --json
answers "$kvfold" eval "$work/same" --reference $books --text $held_out --window 128 --max-windows 4 --compute f32 --json
near kl 0 1e-9

# A recipe, and options that come before its own.
cat >"$work/recipe.yaml" <<'YAML'
method: mha2mla
cache: 50%
set:
  rope_policy: high
  rope_pairs: 2
YAML
answers "$kvfold" convert $books "$work/r1" --recipe "$work/recipe.yaml" --json
is cache_elements_per_token 1024
answers "$kvfold" convert $books "$work/r2" --recipe "$work/recipe.yaml" --cache 75% --set rope_policy=low --json
is cache_elements_per_token 1536
answers "$kvfold" info "$work/r2" --layers --json
grep -q '"rope_policy": "low"' "$work/out" || fail "the resolved recipe is not recorded"

echo 'cache: 50%' >"$work/budget.yaml"
answers "$kvfold" convert $books "$work/r3" --recipe "$work/budget.yaml" --method x-ecomla --json
is cache_elements_per_token 1024
: >"$work/empty.yaml"
expect 1 "$kvfold" convert $books "$work/r4" --recipe "$work/empty.yaml" --method x-ecomla

# DST exists: untouched.
mkdir "$work/mine" && echo x >"$work/mine/file"
expect 1 "$kvfold" convert $books "$work/mine" "$@"
[ "$(cat "$work/mine/file")" = x ] || fail "DST was touched"
[ "$(ls "$work/mine")" = file ] || fail "something was written into DST"
expect 1 "$kvfold" convert "$work/none" "$work/dst" "$@"
expect 1 "$kvfold" convert $books "$work/dst" --method mha2mla --cache 8 --set rope_pairs=4 --set rope_policy=high
expect 1 "$kvfold" convert $books "$work/dst" --method mha2mla --set rank=100000
[ ! -e "$work/dst" ] || fail "a refused conversion left DST behind"

# Deterministic to the byte.
expect 0 "$kvfold" convert $books "$work/again" "$@"
diff -r "$work/x" "$work/again" >/dev/null || fail "two runs gave different bytes"

# Killed: no DST; the same call finishes the work, to the same bytes. resumes SHARD ARGUMENTS...: killed as soon as the file SHARD stands
# in the partial directory. The whole conversion is compared with one of its own.
resumes() {
  shard=$1 killed=0
  shift
  rm -rf "$work/whole"
  expect 0 "$kvfold" convert $books "$work/whole" "$@"
  for attempt in 1 2 3 4 5; do
    rm -rf "$work/k" "$work/k.partial"
    "$kvfold" convert $books "$work/k" "$@" >/dev/null 2>&1 &
    job=$!
    while kill -0 $job 2>/dev/null && [ ! -e "$work/k.partial/$shard" ] && [ ! -e "$work/k" ]; do :; done
    kill -9 $job 2>/dev/null
    wait $job 2>/dev/null
    [ -e "$work/k" ] || { killed=1 && break; }
  done
  [ $killed -eq 1 ] || fail "no run could be killed before its end in $attempt attempts: $*"
  answers "$kvfold" convert $books "$work/k" "$@" --json
  diff -r "$work/whole" "$work/k" >/dev/null || fail "a resumed conversion gave other bytes: $*"
  [ ! -e "$work/k.partial" ] || fail "the partial directory stayed: $*"
}
resumes . "$@"

# The same with layers finished, by each kind of method. The third shard is begun when two are recorded, embedding and a layer at least.
echo 'shard_bytes: 262144' >"$work/shards.yaml"
for method in x-ecomla mha2mla transmla care kv-heads fold; do
  set -- --recipe "$work/shards.yaml" --method $method --cache 50%
  case $method in
    x-ecomla) ;;
    mha2mla) set -- "$@" --set rope_policy=high ;;
    fold) set -- "$@" --calibration $held_out --calibration-tokens 640 --set window=128 rope_pairs=8 ;;
    transmla | care) set -- "$@" --calibration $held_out --calibration-tokens 2560 --set rope_dim=16 freqfold=2 ;;
    kv-heads) set -- "$@" --calibration $held_out --calibration-tokens 2560 ;;
  esac
  resumes model-00003.safetensors "$@"
  [ "$(value layers_resumed)" -gt 0 ] || fail "$method: no layer was taken over"
done
set -- --method x-ecomla --cache 50%

# What the source writes and its statistics, kept for further conversions: the same bytes, with files that are found again.
expect 0 "$kvfold" convert $books "$work/own" --method transmla --cache 50% --calibration-tokens 2560
for method in transmla fold transmla fold; do
  rm -rf "$work/shares-$method"
  expect 0 "$kvfold" convert $books "$work/shares-$method" --method $method --cache 50% --calibration-tokens 2560 --share "$work/share"
done
diff -r "$work/own" "$work/shares-transmla" >/dev/null || fail "shared statistics gave other bytes"
shared=$(find "$work/share" -type f | wc -l)
[ "$shared" -eq 3 ] || fail "$shared files are shared, expected text, moments and fold's statistics"
for kind in text moments fold; do
  cp -r "$work/share" "$work/short"
  truncate -s -4 "$work/short/$kind"-*
  method=$([ $kind = fold ] && echo fold || echo transmla)
  expect 1 "$kvfold" convert $books "$work/no" --method "$method" --cache 50% --calibration-tokens 2560 --share "$work/short"
  says "$kind-.*remove it"
  rm -rf "$work/short" "$work/no.partial"
done

# A file that may not grow: like a full disk.
(
  trap '' XFSZ
  ulimit -f 2048
  exec "$kvfold" convert $books "$work/limited" "$@"
) >"$work/out" 2>"$work/err" </dev/null
[ $? -eq 1 ] || fail "a file size limit does not give exit 1"
[ ! -e "$work/limited" ] || fail "a file size limit left DST behind"
{ [ -s "$work/err" ] && [ "$(grep -c '' "$work/err")" -le 3 ]; } || fail "a file size limit gives no sentence"
mkdir "$work/small"
if mount -t tmpfs -o size=2m none "$work/small" 2>/dev/null; then
  expect 1 "$kvfold" convert $books "$work/small/dst" "$@"
  [ ! -e "$work/small/dst" ] || fail "a full disk left DST behind"
  umount "$work/small"
else
  echo "note: no tmpfs may be mounted here; the full disk was tried by a file size limit only"
fi

# Where nothing may be written.
expect 1 "$kvfold" convert $books /proc/kvfold/dst "$@"
if [ "$(id -u)" -ne 0 ]; then
  mkdir "$work/readonly" && chmod 555 "$work/readonly"
  expect 1 "$kvfold" convert $books "$work/readonly/dst" "$@"
fi
finish
