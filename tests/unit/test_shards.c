/* How what is trained is dealt out: whole, once, evenly, at any size. The exchange itself is tests/cli/mpi.sh's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "train/shards.h"

static void parts(void **state) {
  (void)state;
  for (int64_t numbers = 0; numbers < 40; numbers++) {
    for (int count = 1; count < 9; count++) {
      int64_t at = 0;
      for (int rank = 0; rank < count; rank++) {
        kf_shard s = kf_shard_of(numbers, rank, count);
        int64_t length = s.to - s.from;
        assert_int_equal(s.from, at);
        assert_in_range(length, numbers / count, (numbers + count - 1) / count);
        at = s.to;
      }
      assert_int_equal(at, numbers);
      assert_int_equal(kf_shard_of(numbers, 0, count).to, (numbers + count - 1) / count); /* no part is longer than the first */
    }
  }
  kf_shard wide = kf_shard_of(((int64_t)1 << 41) + 5, 2, 3);
  assert_int_equal(wide.to, ((int64_t)1 << 41) + 5);
}

/* Every number of what is trained is in one part, none of what is frozen is in any. */
static void pieces(void **state) {
  (void)state;
  kf_parameter item[] = {{.rows = 3, .columns = 5, .at = 0, .order = 0, .trained = true},
                         {.rows = 2, .columns = 2, .at = 15, .order = 15},
                         {.rows = 7, .columns = 1, .at = 19, .order = 15, .trained = true},
                         {.rows = 1, .columns = 1, .at = 26, .order = 22, .trained = true}};
  for (int count = 1; count < 30; count++) {
    int owners[27] = {0};
    for (int rank = 0; rank < count; rank++) {
      kf_shard s = kf_shard_of(23, rank, count);
      int64_t sum = 0;
      for (int i = 0; i < 4; i++) {
        kf_stretch p = kf_parameters_piece(&item[i], s);
        assert_true(p.count == 0 || (p.at >= item[i].at && p.at + p.count <= item[i].at + item[i].rows * item[i].columns));
        for (int64_t k = p.at; k < p.at + p.count; k++) owners[k]++;
        sum += p.count;
      }
      assert_int_equal(sum, s.to - s.from);
    }
    for (int k = 0; k < 27; k++) assert_int_equal(owners[k], k < 15 || k >= 19);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(parts), cmocka_unit_test(pieces)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
