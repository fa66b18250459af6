#include "tensor/view.h"

#include <stdlib.h>
#include <string.h>

static int by_name(const void *a, const void *b) {
  const kf_view *const *x = a, *const *y = b;
  return strcmp((*x)->name, (*y)->name);
}

void kf_view_sort(const kf_view **views, int count) {
  if (count > 1) qsort(views, (size_t)count, sizeof *views, by_name);
}

const kf_view *kf_view_find(const kf_view *const *views, int count, const char *name) {
  int low = 0, high = count;
  while (low < high) {
    int middle = low + (high - low) / 2, order = strcmp(name, views[middle]->name);
    if (order == 0) return views[middle];
    if (order < 0)
      high = middle;
    else
      low = middle + 1;
  }
  return NULL;
}

const char *kf_view_duplicate(const kf_view *const *views, int count) {
  for (int i = 1; i < count; i++)
    if (strcmp(views[i - 1]->name, views[i]->name) == 0) return views[i]->name;
  return NULL;
}
