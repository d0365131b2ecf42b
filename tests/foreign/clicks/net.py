import paddle
import paddle.nn.functional as F


class ClickLayer(paddle.nn.Layer):
    def __init__(self, id_num, width):
        super().__init__()
        self.embedding = paddle.nn.Embedding(id_num, width, sparse=True)
        self.first = paddle.nn.Linear(3 * width + 1, 8)
        self.last = paddle.nn.Linear(8, 1)

    def forward(self, ids, dense):
        x = paddle.reshape(self.embedding(ids), [-1, self.first.weight.shape[0] - 1])
        x = F.relu(self.first(paddle.concat([x, dense], axis=1)))
        return F.sigmoid(self.last(x))
