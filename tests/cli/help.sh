# Help, version and wrong usage: exit codes and how much is said.
. tests/cli/check.inc

expect 0 "$kvfold" --version
grep -q '^kvfold [0-9]*\.[0-9]*\.[0-9]*$' "$work/out" || fail "version: $(cat "$work/out")"
expect 0 "$kvfold" --help
for command in info tokenize logits eval generate chat convert export compare sweep finetune distill align dpo plot init; do
  grep -q "^  $command " "$work/out" || fail "--help does not list $command"
done
for command in info tokenize logits eval generate chat convert export compare sweep finetune distill align dpo plot init; do
  expect 0 "$kvfold" $command --help
  for part in NAME SYNOPSIS DESCRIPTION OPTIONS KEYS EXAMPLES 'EXIT STATUS'; do
    grep -q "^$part" "$work/out" || fail "$command --help has no $part"
  done
  cp "$work/out" "$work/page"
  expect 0 "$kvfold" help $command
  cmp -s "$work/page" "$work/out" || fail "help $command differs from $command --help"
  expect 2 "$kvfold" $command --frobnicate
  says frobnicate
done

expect 2 "$kvfold"
expect 2 "$kvfold" frobnicate
says frobnicate
expect 2 "$kvfold" help frobnicate
expect 2 "$kvfold" info
expect 2 "$kvfold" info one two
expect 2 "$kvfold" info -x $books
expect 2 "$kvfold" info --json=yes $books
expect 2 "$kvfold" eval $books
expect 2 "$kvfold" eval $books --text
expect 2 "$kvfold" eval $books --text $held_out --window abc
expect 2 "$kvfold" eval $books --text $held_out --window 0
expect 2 "$kvfold" eval $books --text $held_out --bos perhaps
expect 2 "$kvfold" eval $books --text $held_out --window 64 --stride 65
expect 2 "$kvfold" eval $books --text $held_out --compute f8
expect 2 "$kvfold" eval $books --text $held_out --threads -1
expect 2 "$kvfold" eval $books --text $held_out --device tpu
expect 2 "$kvfold" generate $books
expect 2 "$kvfold" generate $books --prompt a --prompt-file b
expect 2 "$kvfold" generate $books --prompt a --greedy --temperature 0.5
expect 2 "$kvfold" generate $books --prompt a --top-p 1.5
expect 2 "$kvfold" generate $books --prompt a --seed -1
expect 2 "$kvfold" tokenize $books text --file $held_out
expect 2 "$kvfold" tokenize $books --decode 1,x
expect 2 "$kvfold" logits $books --tokens 1,2
expect 2 "$kvfold" logits $books --out "$work/l"
expect 2 "$kvfold" convert $books
expect 2 "$kvfold" convert $books "$work/dst" --method magic
says magic
expect 2 "$kvfold" convert $books "$work/dst" --method mha2mla --set rope_pairs
expect 2 "$kvfold" convert $books "$work/dst" --method mha2mla --cache 128 --set frobnicate=1
says frobnicate
expect 2 "$kvfold" convert $books "$work/dst" --method mha2mla --cache 128 --set svd=sideways
expect 2 "$kvfold" convert $books "$work/dst" --method mha2mla --cache 128 --dtype f8
expect 2 "$kvfold" convert "$work/none" "$work/dst" --method none --dtype f8
[ ! -e "$work/dst" ] || fail "a refused conversion left something behind"

# Options may stand anywhere, and take =.
answers "$kvfold" info --json $books
expect 0 "$kvfold" tokenize --json -- $books --frobnicate
answers "$kvfold" eval --window=64 --max-windows=1 --text=$held_out --json $books
finish
