// What the kernels can take. The launchers read these lines and refuse what does not fit.
#pragma once

#define MW_D_MAX 1040           // dimensions: 127 * 127 * D stays below 2^24, exact in float32
#define MW_K_MAX 1000           // results per query
#define MW_SORT_MAX 2048        // entries that one block sorts; more than MW_K_MAX
#define MW_QUERIES_MAX 65535    // queries of one launch: blockIdx.y
#define MW_ROWS_MAX 2147483647  // rows of a corpus: row numbers are int32
#define MW_FACETS_MAX 65535     // facets of one launch: blockIdx.y
#define MW_ALIGN 16             // x rows and low limbs are padded with zeros to this many bytes
#define MW_THREADS 256          // threads of every block: 8 warps
#define MW_TILE 128             // queries and rows that one block of the sieve multiplies
#define MW_TILES_MAX 65535      // tiles of rows of one launch: blockIdx.y
#define MW_STAGE 64             // bytes of each of them that are in shared memory at a time
#define MW_GROUPS_MAX 65535     // rule sets of one launch: blockIdx.y
#define MW_RULE_GROUPS 32       // rule sets that one block of rule_bits evaluates in turn
#define MW_FEW_MAX 64           // queries that are few: each row is read once for all of them
#define MW_FEW_ROWS 32          // rows that one warp of that kernel multiplies at a time
#define MW_WIDE_QUERIES 256     // queries that one block of sieve_wide keeps in shared memory
#define MW_WIDE_THREADS 512     // threads of such a block: 4 warpgroups
#define MW_WIDE_TILES 64        // tiles of rows that it goes through, at most
#define MW_WIDE_WIDTH_MAX 640   // bytes of a query: what fits beside the rest in 227 KB
#define MW_WIDE_STAGES 4        // stages of rows in shared memory
#define MW_WIDE_LISTED 4096     // pairs that wait there to be finished
#define MW_WIDE_ALIGN 1024      // bytes: shared memory is asked for with so many to spare
