/* A line, printed once, before the cluster is started. */
#include "../../messenger.h"

#include <stdio.h>

int
main(void)
{
	printf("hello, once\n");
	return start_cluster(&(struct options){.workers = 2});
}
