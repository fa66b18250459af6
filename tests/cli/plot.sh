# plot: logs as pictures, and what becomes of logs that cannot be drawn.
. tests/cli/check.inc

# run DIR STEPS: a log as training writes it.
run() {
  mkdir -p "$1"
  awk -v n="$2" 'BEGIN { for (i = 1; i <= n; i++) printf("{\"step\": %d, \"tokens\": %d, \"loss\": %g, \"nll\": 3, " \
    "\"divergence\": 0, \"rate\": %g, \"gradient_norm\": %g, \"tokens_per_second\": 9.0}\n", \
    i, 96 * i, 0.2 + 1 / i, 1e-3 * (n - i), 2 + i % 3) }' >"$1/train.jsonl"
}
run "$work/one" 40
run "$work/two.run" 1200
printf '{"step": 0, "tokens": 0, "perplexity": 90}\n{"step": 40, "tokens": 3840, "perplexity": 60.5}\n' >"$work/one/held-out.jsonl"

mkdir "$work/bin"
expect 1 env PATH="$work/bin" "$kvfold" plot "$work/one"
says gnuplot
[ ! -e "$work/one.svg" ] || fail "a picture without gnuplot"

if command -v gnuplot >/dev/null; then
  answers "$kvfold" plot "$work/one" "$work/two/" --json
  is path "$work/one.svg"
  is runs 2
  for word in loss 'learning rate' 'gradient norm' 'held-out perplexity' tokens "$work/one"; do
    grep -q ">$word" "$work/one.svg" || fail "the picture has no '$word'"
  done
  expect 0 "$kvfold" plot "$work/two" --out "$work/two.png" --by steps
  [ "$(head -c 4 "$work/two.png" | tail -c 3)" = PNG ] || fail "no PNG"
  expect 0 "$kvfold" plot "$work/two.run/train.jsonl" --out "$work/two.svg" --by steps
  grep -q '>steps' "$work/two.svg" || fail "the x axis does not say steps"
  ! grep -q 'held-out' "$work/two.svg" || fail "a panel for held-out text that was not measured"
fi

mkdir "$work/empty" "$work/nothing"
: >"$work/empty/train.jsonl"
expect 1 "$kvfold" plot "$work/one" "$work/empty"
says "empty/train.jsonl is empty"
expect 1 "$kvfold" plot "$work/nothing"
says "not a training run"
run "$work/cut" 3
printf '{"step": 4, "tok' >>"$work/cut/train.jsonl"
expect 1 "$kvfold" plot "$work/cut"
says "train.jsonl:4: not a JSON object"
printf '{"step": 1, "tokens": 5}\n' >"$work/cut/train.jsonl"
expect 1 "$kvfold" plot "$work/cut"
says 'train.jsonl:1: no number "loss"'
expect 2 "$kvfold" plot "$work/one" --out "$work/one.pdf"
says pdf
[ ! -e "$work/cut.svg" ] && [ ! -e "$work/one.pdf" ] || fail "a refused picture left something behind"
finish
