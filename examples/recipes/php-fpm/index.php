<?php
// Answers the process's pid; `?grow` takes memory until the fence ends it.
if (isset($_GET['grow'])) {
    // Given back when it is answered; it is not, where [memory] max is enforced.
    $taken = str_repeat('x', 256 << 20);
}
echo getmypid();
