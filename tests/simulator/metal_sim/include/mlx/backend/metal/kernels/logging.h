// Stands before MLX's header of this name, whose constructors differ by address space only.
#pragma once
