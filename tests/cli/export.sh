# export: both formats by option and by name, and refusals that leave nothing behind.
. tests/cli/check.inc

expect 0 "$kvfold" convert $books "$work/model" --method x-ecomla --cache 50% --dtype f32 --json
answers "$kvfold" export "$work/model" "$work/hf" --format deepseek-v3 --dtype bf16 --json
is format deepseek-v3
is dtype bf16
is path "$work/hf"
is tensors 83
answers "$kvfold" info "$work/hf" --json
is family deepseek_v3
is cache_elements_per_token 1024
answers "$kvfold" export "$work/model" "$work/model.gguf" --json
is format gguf
is dtype f32
is tensors 90
[ -f "$work/model.gguf" ] || fail "no GGUF file"
answers "$kvfold" export "$work/model" "$work/small.gguf" --dtype q8_0 --json
is dtype q8_0
is copied 0
answers "$kvfold" export "$work/model" "$work/padded" --pad 512 --json
answers "$kvfold" info "$work/padded" --json
is cache_elements_per_token 4608
answers "$kvfold" export "$work/model" "$work/turned.gguf" --f16-latents --json
is tensors 90

expect 1 "$kvfold" export "$work/model" "$work/hf"
says exists
expect 1 "$kvfold" export $books "$work/no"
says "kvfold converted"
expect 1 "$kvfold" export "$work/model" "$work/no" --dtype f16
says "bf16 or f32"
expect 1 "$kvfold" export "$work/nothing" "$work/no"
# What no conversion removes is said before the work.
expect 1 "$kvfold" convert tests/fixtures/families/llama_biases "$work/biased.gguf"
says "layer 0 has biases, which DeepSeek's graph does not have"
expect 2 "$kvfold" convert $books "$work/no.gguf" --method mha2mla --cache 50%
says "method mha2mla leaves a RoPE key for each head"
expect 2 "$kvfold" convert $books "$work/no.gguf" --method kv-heads --cache 50%
says "method kv-heads leaves grouped attention"
expect 1 "$kvfold" export "$work/model" "$work/nowhere/no.gguf"
expect 2 "$kvfold" export "$work/model"
expect 2 "$kvfold" export "$work/model" "$work/no" --format onnx
says onnx
expect 2 "$kvfold" export "$work/model" "$work/no" --dtype q2_k
says q8_0
expect 2 "$kvfold" export "$work/model" "$work/no" --pad 8
says "below"
expect 2 "$kvfold" export "$work/model" "$work/no" --source $books
says "GGUF file only"
expect 1 "$kvfold" export "$work/model" "$work/no.gguf" --source $books
says "not a GGUF file"
[ ! -e "$work/no" ] && [ ! -e "$work/no.partial" ] || fail "a refused export left something behind"
finish
