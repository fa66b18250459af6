# finetune, distill, align, dpo: what they write loads and exports, a killed run goes on to the same bytes, refusals leave nothing.
. tests/cli/check.inc
export XDG_CACHE_HOME="$work/cache"
small="--length 48 --batch 2 --threads 1 --compute f32"

expect 0 "$kvfold" convert $books "$work/mla" --method x-ecomla --cache 25% --threads 1
# shellcheck disable=SC2086
answers "$kvfold" distill "$work/mla" --teacher $books --data $held_out --out "$work/healed" --steps 6 --lr 2e-4 $small \
  --eval $held_out --eval-windows 4 --json
is path "$work/healed"
is steps 6
is tokens 576
awk "BEGIN { exit !($(value perplexity_after) < $(value perplexity_before) && $(value perplexity_teacher) < $(value perplexity_after)) }" ||
  fail "perplexity: $(cat "$work/out")"
[ "$(grep -c '' "$work/healed/train.jsonl")" -eq 6 ] || fail "train.jsonl has not one line a step"
[ ! -e "$work/healed.run" ] || fail "the run's directory stays"
answers "$kvfold" info "$work/healed" --json
is method x-ecomla
is cache_elements_per_token 512
expect 0 "$kvfold" export "$work/healed" "$work/healed.gguf"

# Killed at any moment, a run goes on from its last checkpoint.
run="--data $held_out --steps 12 --seed 3 --save-every 2 --train self_attn $small"
# shellcheck disable=SC2086
expect 0 "$kvfold" finetune "$work/mla" --out "$work/whole" $run
# shellcheck disable=SC2086
"$kvfold" finetune "$work/mla" --out "$work/killed" $run >/dev/null 2>&1 &
pid=$!
for _ in $(seq 600); do
  [ ! -s "$work/killed.run/checkpoint.safetensors" ] || break
  sleep 0.1
done
kill -9 $pid 2>/dev/null
wait $pid 2>/dev/null
if [ ! -e "$work/killed" ]; then
  # shellcheck disable=SC2086
  expect 1 "$kvfold" finetune "$work/mla" --out "$work/killed" $run
  says resume
  # shellcheck disable=SC2086
  expect 1 "$kvfold" finetune "$work/mla" --out "$work/killed" $run --resume --lr 0.5
  says rate
  # shellcheck disable=SC2086
  expect 0 "$kvfold" finetune "$work/mla" --out "$work/killed" $run --resume
fi
cmp -s "$work/whole/model.safetensors" "$work/killed/model.safetensors" || fail "a resumed run gives other bytes"

# A teacher's predictions are made once.
own="--teacher $books --data $held_out --steps 2 $small --teacher-cache $work/predictions"
# shellcheck disable=SC2086
expect 0 "$kvfold" distill "$work/mla" $own --out "$work/cached" --teacher-top 8
size=$(wc -c <"$work/predictions/teacher.predictions")
[ "$size" -eq $((4096 + 4 * 16 + 4 * 48 * 8 * 9)) ] || fail "predictions of 4 x 48 tokens take $size bytes"
# shellcheck disable=SC2086
expect 0 "$kvfold" distill "$work/mla" $own --out "$work/again" --teacher-top 8
[ "$(wc -c <"$work/predictions/teacher.predictions")" -eq "$size" ] || fail "the teacher ran again"
cmp -s "$work/cached/model.safetensors" "$work/again/model.safetensors" || fail "kept predictions give other bytes"
# shellcheck disable=SC2086
expect 1 "$kvfold" distill "$work/mla" $own --out "$work/no"
says "top was 8, not 64"
# shellcheck disable=SC2086
expect 2 "$kvfold" distill "$work/mla" $own --out "$work/no" --divergence js
says "serves forward-kl alone"
expect 2 "$kvfold" distill "$work/mla" --teacher $books --data $held_out --steps 2 --out "$work/no" --teacher-top 8
says teacher-cache

printf '{"prompt": "He said ", "chosen": "good day", "rejected": "of of"}\n' >"$work/pairs.jsonl"
# shellcheck disable=SC2086
answers "$kvfold" dpo $books --prefs "$work/pairs.jsonl" --out "$work/preferred" --steps 2 --lr 1e-4 $small --json
# shellcheck disable=SC2086
answers "$kvfold" align "$work/mla" --teacher $books --data $held_out --out "$work/aligned" --steps 2 $small --json
layer=$(value first_loss)
# shellcheck disable=SC2086
answers "$kvfold" align "$work/mla" --teacher $books --data $held_out --out "$work/attention" --steps 2 $small --match attention --json
attention=$(value first_loss)
# shellcheck disable=SC2086
answers "$kvfold" align "$work/mla" --teacher $books --data $held_out --out "$work/both" --steps 2 $small --match both --json
near first_loss "$layer + $attention" 1e-4
expect 2 "$kvfold" align "$work/mla" --teacher $books --data $held_out --out "$work/no" --steps 2 --match mlp
says mlp

# Conversations in both spellings are the same; their answers alone are something else than all of them.
cp -r $books "$work/chatty"
sed -i 's/^{$/{ "chat_template": "{% for m in messages %}<{{ m.role }}> {{ m.content }}\\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",/' \
  "$work/chatty/tokenizer_config.json"
printf '{"messages": [{"role": "user", "content": "Who goes there?"}, {"role": "assistant", "content": "A friend."}]}\n' >"$work/m.jsonl"
printf '{"conversations": [{"from": "human", "value": "Who goes there?"}, {"from": "gpt", "value": "A friend."}]}\n' >"$work/c.jsonl"
chat="--steps 1 --length 12 --batch 1 --lr 1e-3 --threads 1 --compute f32"
# shellcheck disable=SC2086
expect 0 "$kvfold" finetune "$work/chatty" --data "$work/m.jsonl" --learn answers --out "$work/by-m" $chat
# shellcheck disable=SC2086
expect 0 "$kvfold" finetune "$work/chatty" --data "$work/c.jsonl" --learn answers --out "$work/by-c" $chat
# shellcheck disable=SC2086
expect 0 "$kvfold" finetune "$work/chatty" --data "$work/m.jsonl" --out "$work/by-all" $chat
cmp -s "$work/by-m/model.safetensors" "$work/by-c/model.safetensors" || fail "messages and conversations give different bytes"
! cmp -s "$work/by-m/model.safetensors" "$work/by-all/model.safetensors" || fail "--learn answers changes nothing"
expect 1 "$kvfold" finetune $books --data "$work/m.jsonl" --out "$work/no" --steps 1
says "m.jsonl:1: the model has no chat template"

# A recipe gives what the command line does not; every recipe of this repository is read.
printf 'objective: dpo\ndata: [%s]\nsteps: 3\nlength: 40\nbatch: 2\n' "$work/pairs.jsonl" >"$work/dpo.yaml"
answers "$kvfold" dpo $books --recipe "$work/dpo.yaml" --out "$work/by-recipe" --steps 1 --threads 1 --json
is steps 1
expect 2 "$kvfold" finetune $books --recipe "$work/dpo.yaml" --out "$work/no"
says dpo
printf 'lenght: 40\n' >"$work/misspelt.yaml"
expect 2 "$kvfold" finetune $books --recipe "$work/misspelt.yaml" --out "$work/no"
says "nearest: length"
for recipe in recipes/*/*.yaml; do
  case $(grep '^objective' "$recipe") in
    *forward-kl) set -- distill --teacher $books ;;
    *dpo) set -- dpo ;;
    *) set -- finetune ;;
  esac
  expect 1 "$kvfold" "$@" $books --recipe "$recipe" --out "$work/no"
  says "jsonl.zst cannot be read"
done

# A smaller student of a configuration of its own.
sed 's/"num_hidden_layers": 8/"num_hidden_layers": 2/' $books/config.json >"$work/config.json"
answers "$kvfold" init "$work/config.json" "$work/small" --tokenizer $books --seed 5 --json
is path "$work/small"
answers "$kvfold" info "$work/small" --json
is layers 2
# shellcheck disable=SC2086
answers "$kvfold" distill "$work/small" --teacher $books --data $held_out --out "$work/taught" --steps 2 $small --json
expect 1 "$kvfold" init "$work/config.json" "$work/small"
says exists
sed 's/"vocab_size": 4096/"vocab_size": 100/' $books/config.json >"$work/few.json"
expect 1 "$kvfold" init "$work/few.json" "$work/no" --tokenizer $books
says vocabulary
expect 1 "$kvfold" align "$work/small" --teacher $books --data $held_out --out "$work/no" --steps 1
says layers
expect 2 "$kvfold" init "$work/config.json" "$work/no" --dtype q4_0
says q4_0

expect 2 "$kvfold" finetune "$work/mla" --data $held_out --out "$work/no"
says steps
expect 2 "$kvfold" finetune "$work/mla" --out "$work/no" --steps 1
says "no data"
expect 2 "$kvfold" distill "$work/mla" --data $held_out --out "$work/no" --steps 1
says teacher
expect 2 "$kvfold" finetune "$work/mla" --data $held_out --out "$work/no" --steps 1 --schedule flat
says flat
expect 2 "$kvfold" finetune "$work/mla" --data $held_out --out "$work/no" --steps 1 --freeze no_such_tensor
says no_such_tensor
expect 2 "$kvfold" finetune "$work/mla" --data $held_out --weights 1 2 --out "$work/no" --steps 1
says "2 weights"
printf '{"text": "a"}\n{"text": \n' >"$work/bad.jsonl"
expect 1 "$kvfold" finetune "$work/mla" --data "$work/bad.jsonl" --out "$work/no" --steps 1
says "bad.jsonl:2"
printf '{"text": "a"}\n{"text": "b\377"}\n' >"$work/bytes.jsonl"
expect 1 "$kvfold" finetune "$work/mla" --data "$work/bytes.jsonl" --out "$work/no" --steps 1
says "bytes.jsonl:2: .*0xff"
printf 'one\ntwo\n\377\n' >"$work/bytes.txt"
expect 1 "$kvfold" finetune "$work/mla" --data "$work/bytes.txt" --out "$work/no" --steps 1
says "bytes.txt:3: not UTF-8"
expect 1 "$kvfold" finetune "$work/mla" --data $held_out --out "$work/healed" --steps 1
says exists
expect 1 "$kvfold" finetune "$work/mla" --data "$work/nothing.jsonl" --out "$work/no" --steps 1
says nothing.jsonl
[ ! -e "$work/no" ] && [ ! -e "$work/no.partial" ] && [ ! -e "$work/no.run" ] || fail "a refused run left something behind"
finish
