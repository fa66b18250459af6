# info, tokenize, logits, eval and generate on the model that comes along.
. tests/cli/check.inc

answers "$kvfold" info $books --json
is family llama
is layers 8
is hidden 256
is heads 8
is kv_heads 4
is head_dim 32
is context 512
is attention grouped
is cache_elements_per_token 2048
is cache_bytes_per_token 4096
near parameters 6950000 50000
expect 0 "$kvfold" info $books
for line in 'cache at 4k tokens' 'cache at 32k tokens' 'cache at 128k tokens' 'computes here in'; do
  grep -q "^$line" "$work/out" || fail "info does not print '$line'"
done
answers "$kvfold" info $books --layers --json
expect 0 "$kvfold" info $books --layers
[ "$(grep -c '^ *[0-9]* grouped ' "$work/out")" -eq 8 ] || fail "info --layers does not list 8 layers"

answers "$kvfold" tokenize $books "It was a dark night." --json
ids=$(value ids | tr -d '[] ')
[ -n "$ids" ] || fail "no ids"
answers "$kvfold" tokenize $books --decode "$ids" --json
is text "It was a dark night."
printf 'It was a dark night.' >"$work/text"
answers "$kvfold" tokenize $books --file "$work/text" --json
[ "$(value ids | tr -d '[] ')" = "$ids" ] || fail "--file gives other ids than the same TEXT"
"$kvfold" tokenize $books --json <"$work/text" >"$work/out" 2>/dev/null || fail "tokenize does not read standard input"
[ "$(value ids | tr -d '[] ')" = "$ids" ] || fail "standard input gives other ids than the same TEXT"
expect 1 "$kvfold" tokenize $books --decode 99999999

if ! ldd "$kvfold" | grep -q libcudart; then
  for command in "logits $books --tokens 5 --out $work/none" "eval $books --text $held_out" "generate $books --prompt It" \
    "finetune $books --data $held_out --steps 1 --out $work/none"; do
    # shellcheck disable=SC2086
    expect 1 "$kvfold" $command --device cuda
    says "built without CUDA"
  done
fi
answers "$kvfold" logits $books --tokens 5,6,7 --device cpu --out "$work/logits.safetensors" --compute f32 --json
answers "$kvfold" logits $books --tokens 5,6,7 --out "$work/logits.safetensors" --compute f32 --json
is tokens 3
is vocabulary 4096
[ "$(wc -c <"$work/logits.safetensors")" -gt 49152 ] || fail "the logits file is too small for 3 x 4096 numbers"
expect 1 "$kvfold" logits $books --tokens 5,6,4096 --out "$work/other.safetensors"
expect 1 "$kvfold" logits $books --tokens 5,6 --out "$work/no/such/directory/file"

answers "$kvfold" eval $books --text $held_out --window 100 --max-windows 3 --bos no --compute f32 --json
is tokens 297
is windows 3
answers "$kvfold" eval $books --text $held_out --window 100 --max-windows 3 --bos yes --compute f32 --json
is tokens 300
answers "$kvfold" eval $books --text $held_out --window 100 --stride 25 --max-windows 3 --bos no --compute f32 --json
is tokens 149
nll=$(value nll)
near perplexity "exp($nll)" 1e-6
answers "$kvfold" eval $books --reference $books --text $held_out --window 100 --max-windows 2 --compute f32 --json
near kl 0 1e-9
is top1_agreement 1.0
near reference_nll "$(value nll)" 1e-9
expect 1 "$kvfold" eval $books --text /dev/null
expect 1 "$kvfold" eval $books --text "$work/none"
expect 1 "$kvfold" eval $books --text $held_out --window 100000
expect 1 "$kvfold" info "$work/none"
expect 1 "$kvfold" info nobody/nothing

answers "$kvfold" generate $books --prompt "It was a dark night" --greedy --max-new-tokens 12 --json
first=$(value ids)
[ "$(echo "$first" | tr ',' '\n' | grep -c '[0-9]')" -eq 12 ] || fail "12 new tokens expected: $first"
answers "$kvfold" generate $books --prompt "It was a dark night" --temperature 0 --max-new-tokens 12 --json
[ "$(value ids)" = "$first" ] || fail "temperature 0 is not greedy"
for key in text prefill_tokens_per_second decode_tokens_per_second cache_bytes; do
  [ -n "$(value $key)" ] || fail "generate has no $key"
done
printf 'It was a dark night' >"$work/prompt"
own="$kvfold generate $books --dataset 35 --length 16 --threads 1 --compute f32"
# shellcheck disable=SC2086
answers $own --out "$work/own.jsonl" --json
is documents 35
[ "$(grep -c '^{"text": ".*"}$' "$work/own.jsonl")" -eq 35 ] || fail "no 35 documents: $(head -c 200 "$work/own.jsonl")"
# shellcheck disable=SC2086
expect 0 $own --out "$work/again.jsonl" --seed 0
cmp -s "$work/own.jsonl" "$work/again.jsonl" || fail "the same seed gives other documents"
# shellcheck disable=SC2086
expect 0 $own --out "$work/again.jsonl" --seed 1
! cmp -s "$work/own.jsonl" "$work/again.jsonl" || fail "another seed gives the same documents"
answers "$kvfold" finetune $books --data "$work/own.jsonl" --out "$work/tuned" --steps 1 --length 16 --batch 1 --threads 1 \
  --data-cache "$work/cache" --json
for wrong in "--out $work/own.txt" "" "--out $work/no.jsonl --prompt a" "--out $work/no.jsonl --greedy" \
  "--out $work/no.jsonl --temperature 0"; do
  # shellcheck disable=SC2086
  expect 2 $own $wrong
done
expect 2 "$kvfold" generate $books --prompt a --out "$work/no.jsonl"
says dataset
expect 1 "$kvfold" generate $books --dataset 1 --length 1000 --out "$work/no.jsonl"
says context
expect 1 "$kvfold" generate $books --dataset 1 --out "$work/no/such/no.jsonl"
[ ! -e "$work/no.jsonl" ] && [ ! -e "$work/no.jsonl.tmp" ] || fail "a refused dataset left something behind"
answers "$kvfold" generate $books --prompt-file "$work/prompt" --greedy --max-new-tokens 12 --json
[ "$(value ids)" = "$first" ] || fail "--prompt-file gives another text than --prompt"
answers "$kvfold" generate $books --prompt "It was" --seed 3 --max-new-tokens 12 --json
sampled=$(value ids)
answers "$kvfold" generate $books --prompt "It was" --seed 3 --max-new-tokens 12 --json
[ "$(value ids)" = "$sampled" ] || fail "the same seed gives another text"
expect 0 "$kvfold" generate $books --prompt "It was a dark night" --greedy --max-new-tokens 12
grep -q '^It was a dark night' "$work/out" || fail "the text does not stream after the prompt"
says 'tokens'
expect 0 "$kvfold" generate $books --prompt-file $held_out --greedy --max-new-tokens 1
says 'context'
expect 1 "$kvfold" generate $books --prompt-file $held_out --max-new-tokens 0
says 'no room'
stories=${KVFOLD_TEST_DATA:-../shared/data}/models/stories260K
if [ -d "$stories" ]; then
  expect 0 "$kvfold" generate "$stories" --prompt "Once upon" --greedy --max-new-tokens 4
  grep -q '^Once upon a' "$work/out" || fail "the space between prompt and text is lost: $(cat "$work/out")"
  answers "$kvfold" generate "$stories" --prompt "Once upon" --greedy --max-new-tokens 4 --json
  case $(value text) in 'a '*) ;; *) fail "text is not what the new ids alone spell: $(value text)" ;; esac
else
  echo "SKIP: $stories is not there: no text of a SentencePiece model was generated"
fi
finish
