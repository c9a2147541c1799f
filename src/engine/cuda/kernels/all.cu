// Every kernel, as one source for the compiler.
#include "activation.cu"
#include "attention.cu"
#include "norm.cu"
#include "product.cu"
#include "product_pipe.cu"
#include "tile_weight.cu"
