// Stands where CUDA's header of this name is.
#include "emulator.h"
