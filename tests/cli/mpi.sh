# Training by several processes: the curve of one, resumed by as many or by others, refusals and deaths that end all of them.
. tests/cli/check.inc
export XDG_CACHE_HOME="$work/cache"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_btl_vader_single_copy_mechanism=none
small="--length 48 --batch 4 --threads 1 --compute f32"
run="--data $held_out --steps 16 --seed 3 --save-every 4 --lr 1e-3 $small"

# Not started by a launcher that kvfold knows, but told that it was.
# shellcheck disable=SC2086
OMPI_COMM_WORLD_SIZE=2 timeout 60 "$kvfold" finetune $books --out "$work/no" $run >"$work/out" 2>"$work/err" && fail "half a run was made"
if grep -q 'built without MPI' "$work/err"; then
  echo "SKIP: kvfold was built without MPI: no training by several processes was tested"
  exit 77
fi
says "find one another"
if ! mpirun --version 2>/dev/null | grep -q 'Open MPI'; then
  echo "SKIP: there is no mpirun of Open MPI: no training by several processes was tested"
  exit 77
fi

# ranks N ARGUMENTS...: what is said on stderr is kvfold's or the launcher's; a run that hangs is killed, which is 124.
ranks() {
  n=$1
  shift
  timeout 120 mpirun --oversubscribe --bind-to none -n "$n" "$kvfold" "$@" </dev/null >"$work/out" 2>"$work/err"
  got=$?
}
fine() { [ $got -eq 0 ] || fail "exit $got: $(head -c 600 "$work/err")"; }
# refused CODE TEXT: it is said once, by one process.
refused() {
  [ $got -eq "$1" ] || fail "exit $got, expected $1"
  [ "$(grep -c "^kvfold: .*$2" "$work/err")" -eq 1 ] || fail "'$2' is not said once: $(cat "$work/err")"
}

# same_curve DIR DIR: losses and gradient norms to rounding, tokens and rates to the digit.
same_curve() {
  tr -d '{},:' <"$1/train.jsonl" >"$work/a"
  tr -d '{},:' <"$2/train.jsonl" >"$work/b"
  paste -d ' ' "$work/a" "$work/b" | awk '
    { if (NF % 2) exit 1
      for (i = 2; i <= NF / 2; i += 2) {
        name = $(i - 1); x = $i; y = $(i + NF / 2); d = x - y
        if (name ~ /per_second/) continue
        if (d * d > 1e-8 * x * x) { print NR, name, x, y; bad = 1 } } }
    END { exit bad || NR == 0 }' || fail "$1 and $2 are not one curve"
}

# shellcheck disable=SC2086
expect 0 "$kvfold" finetune $books --out "$work/one" $run
# shellcheck disable=SC2086
ranks 2 finetune $books --out "$work/two" $run --eval $held_out --eval-windows 2
fine
[ "$(grep -c '^wrote' "$work/out")" -eq 1 ] || fail "not one rank tells how it ended: $(cat "$work/out")"
grep -q '^perplexity' "$work/out" || fail "nothing was measured"
same_curve "$work/one" "$work/two"
cmp -s "$work/one/training.json" "$work/two/training.json" || fail "the settings of a run depend on the number of processes"

# One of two processes is killed: the other ends too, and the run goes on, with as many to the same bytes.
# shellcheck disable=SC2086
timeout 120 mpirun --oversubscribe --bind-to none -n 2 sh -c "echo \$\$ >$work/pid.\$OMPI_COMM_WORLD_RANK; exec \"\$@\"" sh \
  "$kvfold" finetune $books --out "$work/killed" $run >/dev/null 2>&1 &
pid=$!
for _ in $(seq 1200); do
  [ ! -s "$work/killed.run/checkpoint.safetensors" ] || break
  sleep 0.05
done
kill -9 "$(cat "$work/pid.1")" || fail "the run was over before a process was killed"
began=$(date +%s)
wait $pid
got=$?
[ $got -ne 0 ] && [ $got -ne 124 ] || fail "a run that lost a process ends with $got"
[ $(($(date +%s) - began)) -le 30 ] || fail "a run that lost a process took long to end"
[ ! -e "$work/killed" ] && [ -e "$work/killed.run/checkpoint.safetensors" ] || fail "no checkpoint was left"
cp -r "$work/killed.run" "$work/fewer.run"
# shellcheck disable=SC2086
ranks 2 finetune $books --out "$work/killed" $run --resume
fine
cmp -s "$work/two/model.safetensors" "$work/killed/model.safetensors" || fail "a run that two processes resumed gives other bytes"
# shellcheck disable=SC2086
expect 0 "$kvfold" finetune $books --out "$work/fewer" $run --resume
same_curve "$work/one" "$work/fewer"

# A part of the tensors by more processes; kept predictions; layers; pairs.
two="--data $held_out --steps 3 --lr 1e-3 $small"
expect 0 "$kvfold" convert $books "$work/mla" --method x-ecomla --cache 25% --threads 1
# shellcheck disable=SC2086
while read -r n command how; do
  expect 0 "$kvfold" "$command" "$work/mla" $how --out "$work/$command-one" $two
  rm -rf "$work/kept"
  ranks "$n" "$command" "$work/mla" $how --out "$work/$command-many" $two
  fine
  same_curve "$work/$command-one" "$work/$command-many"
done <<TEXT
4 finetune --train layers.[135]. norm
2 distill --teacher $books --teacher-cache $work/kept
2 align --teacher $books --micro 2
TEXT
printf '{"prompt": "He said ", "chosen": "good day to you", "rejected": "of of"}\n{"prompt": "A ", "chosen": "b", "rejected": "c d"}\n' \
  >"$work/pairs.jsonl"
# shellcheck disable=SC2086
expect 0 "$kvfold" dpo $books --prefs "$work/pairs.jsonl" --out "$work/dpo-one" --steps 3 $small
# shellcheck disable=SC2086
ranks 2 dpo $books --prefs "$work/pairs.jsonl" --out "$work/dpo-two" --steps 3 $small
fine
same_curve "$work/dpo-one" "$work/dpo-two"

# What cannot be done is said once, and nobody waits for the one that failed.
ranks 2 finetune $books --frobnicate
refused 2 frobnicate
# shellcheck disable=SC2086
ranks 3 finetune $books --out "$work/no" $two
refused 2 "batch of 4 cannot be split evenly over 3 processes"
# shellcheck disable=SC2086
ranks 1 finetune $books --out "$work/no" $two --seed 1 : -n 1 "$kvfold" finetune $books --out "$work/no" $two --seed 2
refused 2 "given different settings"
# shellcheck disable=SC2086
ranks 2 align "$work/mla" --teacher $books --out "$work/no" $two
refused 2 "must divide the 2 sequences of a process"
# shellcheck disable=SC2086
ranks 2 finetune $books --out "$work/no" $two --data "$work/nothing.jsonl"
refused 1 nothing.jsonl
# shellcheck disable=SC2086
ranks 1 finetune $books --out "$work/no" $two --steps 2 : -n 1 "$kvfold" finetune $books --out "$work/no" --steps 2 $small \
  --data "$work/nothing.jsonl"
refused 1 "process 1: .*nothing.jsonl"
ranks 2 finetune $books --out "$work/nan" $two --lr 1e3 --clip -1 --schedule constant
refused 1 "is not finite"
[ ! -e "$work/no" ] && [ ! -e "$work/no.run" ] || fail "a refused run left something behind"
# shellcheck disable=SC2086
timeout 120 mpirun --oversubscribe --bind-to none -n 1 sh -c 'trap "" XFSZ; ulimit -f 2000; exec "$@"' sh "$kvfold" finetune $books \
  --out "$work/full" $two --save-every 1 : -n 1 "$kvfold" finetune $books --out "$work/full" $two --save-every 1 \
  >"$work/out" 2>"$work/err"
got=$?
refused 1 "File too large"
finish
