/* How fast this machine reads memory: all threads sum one large buffer; the best of several passes.
 *
 *   bench_read_bandwidth THREADS [MEBIBYTES]      prints {"bytes_per_second": ...} */
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PASSES = 12 };

/* Eight sums, so that no addition waits for the one before. */
__attribute__((target_clones("avx512f", "avx2", "default"), optimize("O3"))) static uint64_t sum(const uint64_t *p,
                                                                                                 size_t count) {
  uint64_t s[64] = {0}, total = 0;
  for (size_t i = 0; i + 64 <= count; i += 64)
    for (int j = 0; j < 64; j++) s[j] += p[i + (size_t)j];
  for (int j = 0; j < 64; j++) total += s[j];
  return total;
}

static double best_pass(const uint64_t *data, size_t bytes, int threads) {
  double best = 0;
  volatile uint64_t sink = 0;
  for (int pass = 0; pass < PASSES; pass++) {
    uint64_t total = 0;
    double start = omp_get_wtime();
#pragma omp parallel num_threads(threads) reduction(+ : total)
    {
      size_t count = bytes / sizeof *data / (size_t)threads;
      total += sum(data + count * (size_t)omp_get_thread_num(), count);
    }
    double rate = (double)bytes / (omp_get_wtime() - start);
    sink += total;
    if (rate > best) best = rate;
  }
  return best;
}

int main(int argc, char **argv) {
  int threads = argc > 1 ? atoi(argv[1]) : 0;
  size_t bytes = (size_t)(argc > 2 ? atoi(argv[2]) : 2048) << 20;
  if (threads < 1 || bytes == 0) {
    fprintf(stderr, "usage: bench_read_bandwidth THREADS [MEBIBYTES]\n");
    return 2;
  }
  uint64_t *data = aligned_alloc((size_t)2 << 20, bytes);
  if (!data) {
    fprintf(stderr, "bench_read_bandwidth: no memory for %zu bytes\n", bytes);
    return 1;
  }
  madvise(data, bytes, MADV_HUGEPAGE);
#pragma omp parallel num_threads(threads)
  {
    size_t part = bytes / (size_t)threads;
    memset((char *)data + part * (size_t)omp_get_thread_num(), 1, part); /* each thread touches what it will read */
  }
  printf("{\"bytes_per_second\": %.0f}\n", best_pass(data, bytes, threads));
  free(data);
  return 0;
}
