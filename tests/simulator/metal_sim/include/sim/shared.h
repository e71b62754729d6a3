// What the runtime and compiled kernels hand each other.
#pragma once

// What a thread knows about itself; names are those of Metal's attributes.
struct SimThread {
  unsigned thread_position_in_grid[3];
  unsigned thread_position_in_threadgroup[3];
  unsigned threadgroup_position_in_grid[3];
  unsigned threads_per_grid[3];
  unsigned threads_per_threadgroup[3];
  unsigned threadgroups_per_grid[3];
  unsigned dispatch_threads_per_threadgroup[3];
  unsigned grid_size[3];
  unsigned grid_origin[3];
  unsigned thread_index_in_threadgroup;
  unsigned thread_index_in_simdgroup;
  unsigned thread_index_in_quadgroup;
  unsigned simdgroup_index_in_threadgroup;
  unsigned quadgroup_index_in_threadgroup;
  unsigned simdgroups_per_threadgroup;
  unsigned quadgroups_per_threadgroup;
  unsigned dispatch_simdgroups_per_threadgroup;
  unsigned dispatch_quadgroups_per_threadgroup;
  unsigned thread_execution_width;
  unsigned threads_per_simdgroup;
};

// What the lanes of a simdgroup brought to one simd operation.
struct alignas(16) SimLanes {
  unsigned char data[32][64];
  unsigned char cached[64];  // a result that is the same for all lanes
  unsigned cached_valid;
  unsigned active;  // bit mask of the lanes that take part
};
