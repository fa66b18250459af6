# chat through a pipe: one answer a line, and the cache goes on.
. tests/cli/check.inc

cp -r $books "$work/model"
cat >"$work/model/tokenizer_config.json" <<'JSON'
{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>",
 "chat_template": "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"}
JSON

printf 'Who are you?\n\nAnd then?\n/reset\nWho are you?\n/exit\nnever read\n' |
  "$kvfold" chat "$work/model" --system "Be brief." --greedy --max-new-tokens 8 --json >"$work/answers" 2>"$work/err" ||
  fail "chat: $(cat "$work/err")"
[ "$(grep -c '' "$work/answers")" -eq 3 ] || fail "3 answers expected: $(cat "$work/answers")"
for n in 1 2 3; do
  sed -n "${n}p" "$work/answers" >"$work/out"
  case $n in
    1) is reused_tokens 0 && first=$(value ids) ;;
    2) [ "$(value prompt_tokens)" -gt 20 ] || fail "the second prompt does not hold the first turn" ;;
    3) [ "$(value ids)" = "$first" ] || fail "after /reset the same question has another answer" ;;
  esac
done
printf 'Who are you?\n' | "$kvfold" chat "$work/model" --greedy --max-new-tokens 8 >"$work/out" 2>"$work/err" || fail "chat: $(cat "$work/err")"
[ -s "$work/out" ] || fail "no answer without --json"

expect 0 "$kvfold" chat "$work/model"
printf 'Who are you?\n' >"$work/question"
"$kvfold" chat $books <"$work/question" >"$work/out" 2>"$work/err" && fail "a model without chat template must be refused"
grep -q template "$work/err" || fail "the refusal does not name the template: $(cat "$work/err")"
finish
