// What stands before every kernel, as in MLX; compiled once, ahead of them.
#pragma once
#include <metal_stdlib>

#include "mlx/backend/metal/kernels/utils.h"
#include "shared.h"
using namespace metal;
