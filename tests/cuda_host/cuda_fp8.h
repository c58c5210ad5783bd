// See candle.h.
#pragma once
