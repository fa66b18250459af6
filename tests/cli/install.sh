# cmake --install: a program finds the library by pkg-config, links and runs. $1: the built command.
set -eu
. tests/cli/check.inc
command -v pkg-config >/dev/null || exit 77
cmake --install "$(dirname "$kvfold")/.." --prefix "$work/tree" >/dev/null
cat >"$work/use.c" <<'C'
#include <kvfold/kvfold.h>
#include <stdio.h>
int main(int argc, char **argv) {
  kf_model_info info;
  kf_error e;
  if (argc < 2 || kf_model_describe(argv[1], &info, &e) != KF_OK) return 1;
  printf("%s %d\n", info.family, info.layers);
  return 0;
}
C
PKG_CONFIG_PATH=$(dirname "$(find "$work/tree" -name kvfold.pc)")
export PKG_CONFIG_PATH
# shellcheck disable=SC2046
cc "$work/use.c" $(pkg-config --cflags kvfold) $(pkg-config --static --libs kvfold) -o "$work/use"
[ "$("$work/use" examples/books-7m)" = "llama 8" ] || fail "the installed library does not describe books-7m"
[ "$("$work/tree/bin/kvfold" --version)" = "$("$kvfold" --version)" ] || fail "the installed command is another"
finish
