// Stands before MLX's header of this name: the simulator's library knows bfloat already.
#pragma once
